"""Whom a model does without: a head whose deadline costs those behind it more than it is worth."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from headrace_server.core.demand import Demand
from headrace_server.core.outlook import Outlook
from headrace_server.core.queue import Group
from headrace_server.core.request import Request, soonest_deadline_s
from headrace_server.core.timetable import Timetable


def shed_below(head: Request, times: Timetable, demand: Demand) -> float:
    """The work per second below which a batch that is cut short loses its head, who has a
    deadline; no more than the largest batch that is possible does."""
    possible = demand.rows_possible(head, times)
    return demand.at_most(demand.least_need, head, times, possible)


def too_dear(
    group: Group,
    members: Sequence[Request],
    rows: int,
    coming: int,
    times: Timetable,
    demand: Demand,
) -> bool:
    """Whether the head, whose deadline cuts the batch down to these members, costs the others
    more than it is worth; `coming` more are to be expected soon.

    Only where a larger batch can begin in its place: one that is no larger would leave the others
    no better off. And only where somebody would be lost, when what waits is played forward behind
    the head's batch. With one worker that is enough, since everybody waits for that batch. With
    several, others begin meanwhile: the head goes where its batch falls short of the need, or
    where fewer are lost without it.
    """
    head, opening = group.head, demand.opening
    if head.deadline_s > soonest_deadline_s(members):
        return False
    mean_rows = group.rows / len(group.requests)
    if not _larger_without(group, rows, coming, mean_rows, times, demand):
        return False
    least = shed_below(head, times, demand)
    one_s, mean_s = times.duration_s(1), times.duration_s(round(mean_rows))
    outlook = Outlook(
        opening.now,
        times,
        demand.margin,
        demand.load / mean_s,
        head.deadline_s - head.arrival_s,
        times.rows_for(least * mean_rows / mean_s * one_s),
    )
    busy_s = [opening.start_s + times.duration_s(rows), *opening.free_s[1:]]
    lost = outlook.losses(group.requests, len(members), busy_s, mean_rows)
    if lost == 0:
        return False
    return (
        len(opening.free_s) == 1
        or times.work_s(members, rows) / times.duration_s(rows) < least
        or lost > outlook.losses(group.requests, 1, opening.free_s, mean_rows)
    )


def _larger_without(
    group: Group, rows: int, coming: int, mean_rows: float, times: Timetable, demand: Demand
) -> bool:
    """Whether more than so many rows could ride if the most urgent ones, as many as need be, did
    not: those who are due late enough, and who comes."""
    due_s = demand.opening.start_s + demand.margin * times.duration_s(rows + 1)
    requests = group.requests
    first = bisect_left(requests, due_s, lo=1, key=lambda request: request.deadline_s)
    return (len(requests) - first + coming) * mean_rows > rows

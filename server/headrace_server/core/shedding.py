"""Whom a model does without: a head whose deadline costs those behind it more than it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

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
    another_comes: Callable[[], bool],
    times: Timetable,
    demand: Demand,
) -> bool:
    """Whether the head, whose deadline cuts the batch down to these members, costs the others
    more than it is worth; `another_comes` says whether one more is to be expected soon.

    Only where a larger batch can begin in its place: one that is no larger would leave the others
    no better off. And only where somebody would be lost, when what waits and who is yet to come is
    played forward behind the head's batch. With one worker that is enough, since everybody waits
    for that batch. With several, others begin meanwhile: the head goes where its batch falls short
    of the need, or where fewer are lost without it. Who is yet to come has as much time as the head
    or as the least urgent one, whichever is more: a head in a hurry is no measure of the others.
    """
    head, opening = group.head, demand.opening
    if head.deadline_s > soonest_deadline_s(members):
        return False
    others = _rows_without(group, rows, times, demand)
    if others < rows or (others == rows and not another_comes()):
        return False
    mean_rows = group.rows / len(group.requests)
    least = shed_below(head, times, demand)
    one_s, mean_s = times.duration_s(1), times.duration_s(round(mean_rows))
    outlook = Outlook(
        opening.now,
        times,
        demand.margin,
        demand.load / mean_s,
        max(request.deadline_s - request.arrival_s for request in (head, group.requests[-1])),
        times.rows_for(least * mean_rows / mean_s * one_s),
    )
    busy_s = [opening.start_s + times.duration_s(rows), *opening.free_s[1:]]
    short = times.work_s(members, rows) / times.duration_s(rows) < least
    if short or len(opening.free_s) == 1:
        return outlook.losses(group.requests, len(members), busy_s, mean_rows, most=1) > 0
    lost = outlook.losses(group.requests, len(members), busy_s, mean_rows)
    without = outlook.losses(group.requests, 1, opening.free_s, mean_rows, most=lost) if lost else 0
    return lost > without


def _rows_without(group: Group, rows: int, times: Timetable, demand: Demand) -> int:
    """How many rows could ride in a batch of more than `rows` if the most urgent ones, as many as
    need be, did not: of those who are due late enough, as far as a batch looks. Counted no further
    than beyond `rows`."""
    due_s = demand.opening.start_s + demand.margin * times.duration_s(rows + 1)
    others = 0
    for request in islice(group.requests, 1, 2 * times.most_rows):
        if request.deadline_s >= due_s:
            others += request.rows
            if others > rows:
                break
    return others

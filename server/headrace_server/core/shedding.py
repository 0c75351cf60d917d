"""Whom a model does without: a head whose deadline costs those behind it more than it is worth."""

from __future__ import annotations

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
    group: Group, members: Sequence[Request], rows: int, times: Timetable, demand: Demand
) -> bool:
    """Whether the head, whose deadline cuts the batch down to these members, costs the others
    more than it is worth."""
    head = group.head
    if head.deadline_s > soonest_deadline_s(members):
        return False
    least = shed_below(head, times, demand)
    rate = times.work_s(members, rows) / times.duration_s(rows)
    return rate < least or _better_without(group, len(members), rows, times, demand, least)


def _better_without(
    group: Group, taken: int, rows: int, times: Timetable, demand: Demand, least: float
) -> bool:
    """Whether fewer are lost if the head, whose deadline cuts the batch down to the first `taken`
    requests, is refused; `least` is the work per second that is asked of a batch."""
    head, opening = group.head, demand.opening
    mean_rows = group.rows / len(group.requests)
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
    lost = outlook.losses(group.requests, taken, busy_s, mean_rows)
    return lost > 0 and lost > outlook.losses(group.requests, 1, opening.free_s, mean_rows)

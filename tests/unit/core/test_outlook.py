"""Playing a queue forward: who would be lost after the next batch."""

from __future__ import annotations

import math

import pytest

from headrace_server.core.cost import Curve
from headrace_server.core.outlook import LOOKAHEAD, MAX_TURNS, Outlook
from headrace_server.core.request import Request
from headrace_server.core.timetable import Timetable
from scheduler_driver import make_request

TIMES = Timetable(Curve(base=0.008, row=0.002, element=0.0, pair=0.0), 0, 8)
"""10 ms for one row, 24 ms for eight."""


def outlook(*, arriving: float = 0.0, patience_s: float = 0.05, enough: int = 0) -> Outlook:
    return Outlook(
        now=0.0, times=TIMES, margin=1.0, arriving=arriving, patience_s=patience_s, enough=enough
    )


def due(*deadlines_s: float, priority: int = 1) -> list[Request]:
    return [
        make_request(i, deadline_s=deadline_s, priority=priority)
        for i, deadline_s in enumerate(deadlines_s, start=1)
    ]


def test_nobody_is_lost_who_can_ride_in_time() -> None:
    assert outlook().losses(due(0.03, 0.03, 0.03), 0, [0.0], 1.0) == 0


def test_whoever_cannot_be_in_time_even_alone_is_lost() -> None:
    assert outlook().losses(due(0.005, 0.03), 0, [0.0], 1.0) == 1


def test_those_who_ride_now_are_not_looked_at() -> None:
    assert outlook().losses(due(0.005, 0.03), 1, [0.0], 1.0) == 0


def test_a_busy_worker_begins_when_it_is_free() -> None:
    assert outlook().losses(due(0.03), 0, [0.021], 1.0) == 1
    assert outlook().losses(due(0.03), 0, [0.021, 0.015], 1.0) == 0, "another one is free sooner"


def test_a_batch_too_small_to_keep_up_loses_its_head() -> None:
    # Three rows fit before 14 ms; five wait.
    waiting = due(0.014, *[0.05] * 4)
    assert outlook(enough=3).losses(waiting, 0, [0.0], 1.0) == 0
    assert outlook(enough=4).losses(waiting, 0, [0.0], 1.0) == 1


def test_a_small_batch_is_no_loss_when_nobody_else_waits() -> None:
    assert outlook(enough=8).losses(due(0.014), 0, [0.0], 1.0) == 0


def test_those_who_will_come_are_counted_too() -> None:
    # While 24 ms run, 24 arrive who are due 20 ms after they came: too many to be in time.
    assert outlook(arriving=1000.0, patience_s=0.02).losses(due(0.03), 1, [0.024], 1.0) > 0
    assert outlook(arriving=10.0, patience_s=0.02).losses(due(0.03), 1, [0.024], 1.0) == 0


def test_the_less_urgent_do_not_count() -> None:
    waiting = [make_request(1, priority=1, deadline_s=1.0), *due(0.005, priority=2)]
    assert outlook().losses(waiting, 1, [0.0], 1.0) == 0
    assert outlook().losses([*due(1.0), *due(0.005)], 1, [0.0], 1.0) == 1


def test_requests_of_several_rows_ride_whole() -> None:
    waiting = [make_request(i, rows=4, deadline_s=0.024) for i in (1, 2, 3)]
    assert outlook().losses(waiting, 0, [0.0], 4.0) == 1


@pytest.mark.parametrize("count", [LOOKAHEAD * 8, LOOKAHEAD * 100])
def test_it_looks_a_bounded_number_of_batches_ahead(count: int) -> None:
    waiting = [*due(*[1e9] * LOOKAHEAD * 8), *due(*[0.0] * (count - LOOKAHEAD * 8))]
    assert outlook().losses(waiting, 0, [0.0], 1.0) == 0


def test_it_looks_at_a_bounded_number_of_those_who_are_too_late() -> None:
    assert outlook().losses(due(*[0.0] * 5_000), 0, [0.0], 1.0) == MAX_TURNS


def test_those_who_have_all_the_time_are_never_lost() -> None:
    everybody = [make_request(i) for i in range(3)]
    forever = outlook(arriving=5.0, patience_s=math.inf)
    assert forever.losses(everybody, 0, [0.0], 1.0) == 0

"""What the policies say of themselves: durations by rows and length, and which batch is enough."""

from __future__ import annotations

import pytest

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.cost import Curve
from headrace_server.core.explanation import explanation_of
from headrace_server.core.policy import StaticPolicy, StaticSettings
from headrace_server.core.request import Batch, DispatchReason
from headrace_server.core.scheduler import Scheduler
from headrace_server.core.timetable import WORTHWHILE, Timetable
from scheduler_driver import make_request

BATCHING_PAYS = Curve(base=1e-2, row=1e-3, element=0.0, pair=0.0)
BATCHING_GAINS_NOTHING = Curve(base=1e-6, row=1e-2, element=0.0, pair=0.0)
RAGGED = Curve(base=1e-2, row=1e-4, element=1e-4, pair=0.0)


def policy(curve: Curve, most_rows: int = 16, lengths: tuple[int, ...] = (0,)) -> AdaptivePolicy:
    return AdaptivePolicy(
        most_rows, [(r, x, curve.at(r, x)) for x in lengths for r in (1, 4, most_rows)]
    )


def test_what_was_timed_is_what_is_expected() -> None:
    told = policy(BATCHING_PAYS).explain([0])
    assert told.rows == tuple(range(1, 17))
    (plan,) = told.plans
    assert plan.durations_s == pytest.approx([BATCHING_PAYS.at(r, 0) for r in told.rows], rel=0.01)
    assert told.margin == 1.0


def test_the_batch_that_is_enough_is_within_reach_of_the_best() -> None:
    told = policy(BATCHING_PAYS, 64).explain([0])
    (plan,) = told.plans
    gains = [
        rows * plan.durations_s[0] / duration_s
        for rows, duration_s in zip(told.rows, plan.durations_s, strict=True)
    ]
    enough = told.rows.index(plan.enough_rows)
    assert gains[enough] >= WORTHWHILE * max(gains) > gains[enough - 1]
    assert told.worthwhile == WORTHWHILE


def test_one_row_is_enough_where_batching_gains_nothing() -> None:
    assert policy(BATCHING_GAINS_NOTHING).explain([0]).plans[0].enough_rows == 1


def test_longer_batches_are_explained_apart_in_order_of_length() -> None:
    told = policy(RAGGED, lengths=(8, 128)).explain([100, 10])
    short, long = told.plans
    assert (short.length, long.length) == (10, 100)
    assert all(a < b for a, b in zip(short.durations_s, long.durations_s, strict=True))
    assert short.enough_rows >= long.enough_rows


def test_before_anything_was_served_the_lengths_that_were_timed_are_explained() -> None:
    told = policy(RAGGED, lengths=(128, 8)).explain([])
    assert [plan.length for plan in told.plans] == [8, 128]


def test_before_anything_is_known_there_are_no_plans() -> None:
    unknowing = AdaptivePolicy(8)
    assert unknowing.explain([5]).plans == ()
    batch = Batch(0, 0, [make_request(1, length=5)], 1, DispatchReason.IMMEDIATE, 0.0, 0.0)
    unknowing.observe(batch, 0.01)
    assert [plan.length for plan in unknowing.explain([]).plans] == [5]


@pytest.mark.parametrize("most_rows", [1, 2, 63, 64, 65, 100, 1_000, 5_000])
def test_rows_reach_the_largest_batch_in_small_steps(most_rows: int) -> None:
    curve = Curve(base=100.0, row=1.0, element=0.0, pair=0.0)
    told = explanation_of({0: Timetable(curve, 0, most_rows)}, most_rows, 1.0)
    assert (told.rows[0], told.rows[-1]) == (1, most_rows)
    assert told.plans[0].enough_rows in told.rows
    assert all(b - a <= max(1, a / 32) for a, b in zip(told.rows, told.rows[1:], strict=False))
    assert {2**i for i in range(13) if 2**i <= most_rows} <= set(told.rows)
    assert len(told.rows) < 300


def test_fixed_rules_expect_nothing() -> None:
    static = StaticPolicy(StaticSettings(max_batch_size=8))
    assert Scheduler(static).explain([0]) is None
    assert Scheduler(AdaptivePolicy(8)).explain([0]) is not None

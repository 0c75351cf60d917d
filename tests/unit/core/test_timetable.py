"""A curve written out by rows, and the questions that decisions ask of it."""

from __future__ import annotations

import pytest

from headrace_server.core.cost import Curve
from headrace_server.core.timetable import WORTHWHILE, WRITTEN, Timetable
from scheduler_driver import make_request

PAYS = Timetable(Curve(base=0.010, row=0.001, element=0.0, pair=0.0), 0, 8)
PAYS_NOTHING = Timetable(Curve(base=1e-6, row=0.010, element=0.0, pair=0.0), 0, 8)


def test_durations_follow_the_curve_and_go_on_in_proportion() -> None:
    assert PAYS.duration_s(3) == pytest.approx(0.013)
    assert PAYS.duration_s(16) == pytest.approx(2 * 0.018)


def test_rows_within_a_time() -> None:
    assert PAYS.rows_within(0.0135) == 3
    assert PAYS.rows_within(0.0109) == 0
    assert PAYS.rows_within(-1.0) == 0
    assert PAYS.rows_within(9.0) == 8


def test_the_work_of_requests_is_what_they_would_take_one_by_one() -> None:
    assert PAYS.work_s([make_request(1), make_request(2)], 2) == pytest.approx(0.022)
    assert PAYS.work_s([make_request(1, rows=3)], 3) == pytest.approx(0.013)


def test_the_rate_is_work_over_time() -> None:
    assert PAYS.rate(1, 1) == pytest.approx(1.0)
    assert PAYS.rate(8, 1) == pytest.approx(8 * 0.011 / 0.018)
    assert PAYS.rate(8, 4) == pytest.approx(2 * 0.014 / 0.018)
    assert PAYS.rate(0, 1) == 0.0


def test_enough_is_the_smallest_batch_next_to_the_best() -> None:
    assert [PAYS.enough(rows) for rows in (1, 4, 8)] == [1, 4, 8]
    assert [PAYS_NOTHING.enough(rows) for rows in (1, 4, 8)] == [1, 1, 1]


def test_enough_ends_at_a_step() -> None:
    by_fours = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0)
    stepped = Timetable(Curve(base=0.01, row=0.0, element=0.0, pair=0.0, steps=by_fours), 0, 8)
    assert stepped.enough(7) == 4, "five to seven rows take twice as long as four"
    assert stepped.enough(8) == 4


@pytest.mark.parametrize(
    ("two_s", "load", "quicker"),
    [
        (1.6, 0.0, True),  # 1.5 rows on the mean, one after another
        (1.4, 0.0, False),
        (1.6, 0.3, False),  # 1.65: what comes meanwhile waits too
        (1.9, 0.7, True),  # 1.85
        (1.9, 0.9, False),
        (2.0, 1.0, False),  # nothing may be wasted
        (2.0, 1.5, False),
    ],
)
def test_two_are_quicker_alone_unless_they_save_enough(
    two_s: float, load: float, quicker: bool
) -> None:
    times = Timetable(Curve(base=2.0 - two_s, row=two_s - 1.0, element=0.0, pair=0.0), 0, 2)
    assert times.duration_s(1) == pytest.approx(1.0)
    assert times.duration_s(2) == pytest.approx(two_s)
    assert times.quicker_alone(2, load) is quicker


@pytest.mark.parametrize("most_rows", [WRITTEN, WRITTEN + 1, 3 * WRITTEN])
@pytest.mark.parametrize("base", [1e-6, 0.5, 50.0])
def test_what_is_not_written_out_is_as_if_it_were(most_rows: int, base: float) -> None:
    steps = (1.0, *(1.0 + (rows + 15) // 16 / 8 for rows in range(1, 512)))
    curve = Curve(base, row=0.01, element=0.0, pair=0.0, steps=steps)
    times = Timetable(curve, 0, most_rows)
    durations = [0.0, *curve.upto(most_rows, 0)]
    rates = [0.0] + [rows * durations[1] / s for rows, s in enumerate(durations[1:], 1)]
    for rows in (1, WRITTEN - 1, WRITTEN, most_rows - 1, most_rows):
        assert times.duration_s(rows) == durations[rows]
        assert times.rows_within(durations[rows]) == rows
        assert times.rows_within(durations[rows] * (1 - 1e-9)) == rows - 1
        first = next(r for r in range(1, most_rows + 1) if rates[r] >= rates[rows])
        assert times.rows_for(rates[rows]) == first
        best = WORTHWHILE * max(rates[: rows + 1])
        assert times.enough(rows) == next(r for r, rate in enumerate(rates) if rate >= best)
    assert times.duration_s(2 * most_rows) == pytest.approx(2 * durations[-1])
    assert times.rows_for(1.01 * max(rates)) == most_rows + 1

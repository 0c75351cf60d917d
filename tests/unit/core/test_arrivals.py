"""How much work arrives: over many arrivals, and silence after them."""

from __future__ import annotations

import math

import pytest

from headrace_server.core.arrivals import STRIDE, WINDOW, ArrivingWork


def arrive(work: ArrivingWork, count: int, gap_s: float, work_s: float, at: float = 0.0) -> float:
    """So many arrivals, one every `gap_s` from `at` on; returns the moment of the last."""
    for number in range(count):
        work.add(work_s, at + number * gap_s)
    return at + (count - 1) * gap_s


def test_nothing_is_claimed_of_a_few_arrivals() -> None:
    work = ArrivingWork()
    last_s = arrive(work, 2 * STRIDE, 0.01, 0.005)
    assert work.per_second(last_s) == 0.0


def test_work_per_second_is_rate_times_work() -> None:
    work = ArrivingWork()
    last_s = arrive(work, 500, 0.01, 0.005)
    assert work.per_second(last_s) == pytest.approx(0.5, rel=0.02)


def test_it_falls_while_nobody_arrives() -> None:
    work = ArrivingWork()
    last_s = arrive(work, 500, 0.01, 0.005)
    assert work.per_second(last_s + 5.0) == pytest.approx(0.25, rel=0.02)


def test_it_looks_back_over_a_window_of_arrivals() -> None:
    work = ArrivingWork()
    last_s = arrive(work, 1_000, 1.0, 0.5)
    last_s = arrive(work, WINDOW + 2 * STRIDE, 0.01, 0.005, last_s)
    assert work.per_second(last_s) == pytest.approx(0.5, rel=0.02)


def test_arrivals_of_one_moment_claim_no_rate() -> None:
    work = ArrivingWork()
    arrive(work, 100, 0.0, 1.0)
    assert work.per_second(0.0) == 0.0


def test_silence_is_counted_in_mean_gaps_from_the_last_arrival() -> None:
    work = ArrivingWork()
    assert work.silent_from(5.0) == -math.inf
    work.add(1.0, 3.0)
    assert work.silent_from(5.0) == 3.0, "one arrival says nothing of gaps"
    work = ArrivingWork()
    last_s = arrive(work, 100, 0.01, 1.0)
    assert work.silent_from(5.0) == pytest.approx(last_s + 0.05)

"""How much work arrives per second, and how sure that is."""

from __future__ import annotations

import math
from random import Random

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
    assert work.per_second(last_s) == work.lately_per_second(last_s) == 0.0


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


def test_what_came_lately_is_soon_another_rate() -> None:
    work = ArrivingWork()
    last_s = arrive(work, 1_000, 0.01, 0.01)
    assert work.lately_per_second(last_s) == pytest.approx(1.0, rel=0.05)
    last_s = arrive(work, 3 * STRIDE, 0.05, 0.01, last_s)
    assert work.lately_per_second(last_s) == pytest.approx(0.2, rel=0.05)
    assert work.per_second(last_s) > 0.7


def test_arrivals_of_one_moment_claim_no_rate() -> None:
    work = ArrivingWork()
    arrive(work, 100, 0.0, 1.0)
    assert work.per_second(0.0) == 0.0


class TestDoubt:
    """Of the rate, 19 times out of 20 on one side: 1.645 standard errors of 1,024 arrivals."""

    def doubt(self, variation: float, *, seed: int = 0) -> float:
        random, work, now = Random(seed), ArrivingWork(), 0.0
        shape = 1 / variation**2
        for _ in range(2 * WINDOW):
            now += random.gammavariate(shape, 0.01 / shape)
            work.add(0.005, now)
        return work.doubt

    def test_there_is_none_where_arrivals_come_by_the_clock(self) -> None:
        work = ArrivingWork()
        arrive(work, WINDOW, 0.01, 0.005)
        assert work.doubt == pytest.approx(0.0, abs=1e-4)

    @pytest.mark.parametrize("variation", [1.0, 2.0, 4.0])
    def test_it_grows_with_the_variation_of_gaps(self, variation: float) -> None:
        doubts = [self.doubt(variation, seed=seed) for seed in range(20)]
        expected = 1.645 * variation / math.sqrt(WINDOW)
        assert sum(doubts) / 20 == pytest.approx(expected, rel=0.1)

    def test_bursts_that_last_count_though_gaps_within_them_are_equal(self) -> None:
        work, at = ArrivingWork(), 0.0
        for _ in range(WINDOW // 64):
            at = arrive(work, 64, 0.001, 0.005, at) + 1.0
        assert work.doubt > 0.2

    def test_of_a_few_arrivals_or_of_one_moment_nothing_is_said(self) -> None:
        few, one_moment = ArrivingWork(), ArrivingWork()
        arrive(few, STRIDE, 0.01, 0.005)
        arrive(one_moment, WINDOW, 0.0, 0.005)
        assert few.doubt == one_moment.doubt == 0.0

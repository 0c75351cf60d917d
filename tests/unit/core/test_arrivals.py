"""How work arrives: over many arrivals, silence after them, and whether it comes in bursts."""

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


def test_silence_is_counted_in_mean_gaps_from_the_last_arrival() -> None:
    work = ArrivingWork()
    assert work.silent_from(5.0) == -math.inf
    work.add(1.0, 3.0)
    assert work.silent_from(5.0) == 3.0, "one arrival says nothing of gaps"
    work = ArrivingWork()
    last_s = arrive(work, 100, 0.01, 1.0)
    assert work.silent_from(5.0) == pytest.approx(last_s + 0.05)


def arrive_in_bursts(work: ArrivingWork, bursts: int, size: int) -> float:
    """So many bursts, one every second, a millisecond between members; returns the last moment."""
    for burst in range(bursts):
        last_s = arrive(work, size, 0.001, 1.0, float(burst))
    return last_s


def test_a_burst_is_over_after_three_of_its_own_gaps() -> None:
    work = ArrivingWork()
    last_s = arrive_in_bursts(work, 60, size=5)
    assert work.burst_until(math.inf) == pytest.approx(last_s + 0.003)
    assert work.burst_until(0.002) == pytest.approx(last_s + 0.002)


def test_who_comes_in_one_moment_is_not_waited_for() -> None:
    work = ArrivingWork()
    for number in range(60):
        arrive(work, 5, 0.0, 1.0, float(number))
    assert work.burst_until(math.inf) == 59.0


def test_pairs_are_bursts_but_not_a_few_among_many_who_come_alone() -> None:
    work = ArrivingWork()
    last_s = arrive_in_bursts(work, 100, size=2)
    assert work.burst_until(math.inf) == pytest.approx(last_s + 0.003)
    work = ArrivingWork()
    for number in range(100):
        last_s = arrive(work, 2 if number % 2 else 1, 0.001, 1.0, float(number))
    assert work.burst_until(math.inf) == -math.inf


def test_bursts_are_not_expected_of_a_few_arrivals() -> None:
    work = ArrivingWork()
    arrive_in_bursts(work, 6, size=5)
    assert work.burst_until(math.inf) == -math.inf


def test_bursts_are_forgotten_once_arrivals_are_spread() -> None:
    work = ArrivingWork()
    last_s = arrive_in_bursts(work, 100, size=5)
    arrive(work, WINDOW, 0.2, 1.0, last_s + 0.2)
    assert work.burst_until(math.inf) == -math.inf


def test_bursts_are_forgotten_long_before_their_window_is_over() -> None:
    work = ArrivingWork()
    last_s = arrive_in_bursts(work, WINDOW // 5, size=5)
    arrive(work, WINDOW // 16, 0.2, 1.0, last_s + 0.2)
    assert work.burst_until(math.inf) == -math.inf


@pytest.mark.parametrize("seed", range(5))
def test_independent_arrivals_and_a_lone_caller_do_not_come_in_bursts(seed: int) -> None:
    random = Random(seed)
    independent, lone = ArrivingWork(), ArrivingWork()
    independent_s = lone_s = 0.0
    for _ in range(2 * WINDOW):
        independent_s += random.expovariate(1.0)
        independent.add(1.0, independent_s)
        lone_s += 0.010 + random.uniform(0.0, 0.002)
        lone.add(0.010, lone_s)
        assert independent.burst_until(math.inf) == lone.burst_until(math.inf) == -math.inf


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

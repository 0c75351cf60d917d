"""How often others come who could ride along, and whether they come in bursts."""

from __future__ import annotations

import math
from random import Random

import pytest

from headrace_server.core.arrivals import STRIDE, WINDOW
from headrace_server.core.company import RARE, Company


def arrive(company: Company, count: int, gap_s: float, at: float = 0.0) -> float:
    """So many arrivals, one every `gap_s` from `at` on; returns the moment of the last."""
    for number in range(count):
        company.add(at + number * gap_s)
    return at + (count - 1) * gap_s


def arrive_in_bursts(company: Company, bursts: int, size: int, gap_s: float = 0.001) -> float:
    """So many bursts, one every second; returns the last moment."""
    for burst in range(bursts):
        last_s = arrive(company, size, gap_s, float(burst))
    return last_s


def test_of_a_few_nothing_is_known() -> None:
    company = Company()
    assert company.gap_s == math.inf
    arrive(company, STRIDE, 0.01)
    assert company.gap_s == math.inf
    assert company.burst_gap_s == 0.0
    arrive_in_bursts(company := Company(), 6, size=5)
    assert company.burst_gap_s == 0.0


def test_the_mean_gap_is_of_the_last_thousand() -> None:
    company = Company()
    last_s = arrive(company, 100, 0.01)
    assert company.gap_s == pytest.approx(0.01)
    arrive(company, WINDOW + STRIDE, 0.02, last_s)
    assert company.gap_s == pytest.approx(0.02)


def test_a_burst_goes_on_for_three_of_its_own_gaps() -> None:
    company = Company()
    arrive_in_bursts(company, 60, size=5)
    assert company.burst_gap_s == pytest.approx(0.003)


def test_who_comes_in_one_moment_is_not_waited_for() -> None:
    company = Company()
    arrive_in_bursts(company, 60, size=5, gap_s=0.0)
    assert company.burst_gap_s == 0.0


def test_pairs_are_bursts_but_not_a_few_among_many_who_come_alone() -> None:
    company = Company()
    arrive_in_bursts(company, 100, size=2)
    assert company.burst_gap_s == pytest.approx(0.003)
    company = Company()
    for number in range(100):
        arrive(company, 2 if number % 2 else 1, 0.001, float(number))
    assert company.burst_gap_s == 0.0


def test_a_few_bursts_after_many_who_came_alone_are_not_yet_expected_to_go_on() -> None:
    company = Company()
    last_s = arrive(company, WINDOW // 2, 0.2)
    for burst in range(12):
        arrive(company, 5, 0.001, last_s + 1.0 + burst)
    assert company.burst_gap_s == 0.0


@pytest.mark.parametrize("since", [WINDOW, WINDOW // 16])
def test_bursts_are_forgotten_soon_after_arrivals_are_spread(since: int) -> None:
    company = Company()
    last_s = arrive_in_bursts(company, WINDOW // 5, size=5)
    assert company.burst_gap_s > 0.0
    arrive(company, since, 0.2, last_s + 0.2)
    assert company.burst_gap_s == 0.0


@pytest.mark.parametrize(("size", "alone"), [(2, 9), (5, 4), (16, 3)])
def test_the_longer_bursts_are_the_fewer_must_come_alone_until_they_are_over(
    size: int, alone: int
) -> None:
    company = Company()
    last_s = arrive_in_bursts(company, 16 * STRIDE, size)
    assert company.burst_gap_s > 0.0
    last_s = arrive(company, alone - 1, 0.2, last_s + 0.2)
    assert company.burst_gap_s > 0.0
    company.add(last_s + 0.2)
    assert company.burst_gap_s == 0.0
    assert (1 / size) ** alone < RARE < (1 / size) ** (alone - 1)


def test_bursts_that_were_over_are_expected_again_when_they_come_again() -> None:
    company = Company()
    last_s = arrive_in_bursts(company, WINDOW // 5, size=5)
    last_s = arrive(company, 8, 0.2, last_s + 0.2)
    assert company.burst_gap_s == 0.0
    for burst in range(4):
        arrive(company, 5, 0.001, last_s + 1.0 + burst)
    assert company.burst_gap_s == pytest.approx(0.003, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_independent_arrivals_and_a_lone_caller_do_not_come_in_bursts(seed: int) -> None:
    random = Random(seed)
    independent, lone = Company(), Company()
    independent_s = lone_s = 0.0
    for _ in range(2 * WINDOW):
        independent_s += random.expovariate(1.0)
        independent.add(independent_s)
        lone_s += 0.010 + random.uniform(0.0, 0.002)
        lone.add(lone_s)
        assert independent.burst_gap_s == lone.burst_gap_s == 0.0

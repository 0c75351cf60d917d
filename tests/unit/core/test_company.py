"""Who comes soon to ride with a request: the mean gap, bursts, and how long one is waited for."""

from __future__ import annotations

import math
from copy import deepcopy
from random import Random

import pytest

from headrace_server.core.company import ENOUGH, RARE, SLACK, STRIDE, WINDOW, Company

WORTH_S = 0.010
"""What is saved if the next one rides along, unless a test says otherwise."""


def arrive(company: Company, count: int, gap_s: float, at: float = 0.0) -> float:
    """So many arrivals, the first of them at that moment; returns that of the last one."""
    for number in range(count):
        company.add(at + number * gap_s)
    return at + (count - 1) * gap_s


def arrive_in_bursts(
    company: Company, bursts: int, size: int, gap_s: float = 0.001, at: float = 0.0
) -> float:
    """One burst a second; returns the moment of the last arrival."""
    last_s = 0.0
    for burst in range(bursts):
        last_s = arrive(company, size, gap_s, at + float(burst))
    return last_s


def test_of_a_few_arrivals_nothing_is_known() -> None:
    company = Company()
    assert company.gap_s == math.inf
    assert company.last_s == -math.inf
    assert company.rest_of_burst_s(WORTH_S) == 0.0
    assert arrive(company, STRIDE, 0.01) == company.last_s
    assert company.gap_s == math.inf
    arrive_in_bursts(company := Company(), ENOUGH // 5, size=5)
    assert company.rest_of_burst_s(WORTH_S) == 0.0


def test_the_mean_gap_is_that_of_the_last_arrivals() -> None:
    company = Company()
    last_s = arrive(company, 100, 0.01)
    assert company.gap_s == pytest.approx(0.01)
    arrive(company, WINDOW + 1, 0.02, last_s)
    assert company.gap_s == pytest.approx(0.02)


def test_the_next_one_of_a_burst_is_waited_for_a_little_longer_than_it_takes() -> None:
    company = Company()
    arrive_in_bursts(company, 60, size=5)
    assert company.rest_of_burst_s(WORTH_S) == pytest.approx(SLACK * 0.001)


def test_who_comes_at_the_same_moment_is_not_waited_for() -> None:
    company = Company()
    arrive_in_bursts(company, 60, size=5, gap_s=0.0)
    assert company.rest_of_burst_s(WORTH_S) == 0.0
    arrive(company := Company(), WINDOW, 0.0)
    assert company.rest_of_burst_s(WORTH_S) == 0.0


def test_nobody_is_waited_for_who_is_not_worth_the_time() -> None:
    company = Company()
    arrive_in_bursts(company, 60, size=5)
    assert company.rest_of_burst_s(0.0009) == 0.0


def test_the_wait_ends_when_it_gains_most() -> None:
    """Of five gaps three take 1 ms, one 4 ms and one a second. Who waits for 1 ms waits for that
    long twice in vain, (3 + 2) ms for three; for 4 ms once, (3 + 4 + 4) ms for four. The fourth is
    worth the 6 ms more, or is not."""
    company = Company()
    moment_s = 0.0
    for _ in range(50):
        for gap_s in (0.001, 0.001, 0.001, 0.004, 1.0):
            company.add(moment_s)
            moment_s += gap_s
    assert company.rest_of_burst_s(0.0055) == pytest.approx(SLACK * 0.001)
    assert company.rest_of_burst_s(0.0065) == pytest.approx(SLACK * 0.004)


def test_bursts_are_looked_for_again_after_a_stride_and_for_another_worth() -> None:
    company = Company()
    last_s = arrive_in_bursts(company, 64, size=5)  # a whole number of strides
    assert company.rest_of_burst_s(WORTH_S) == pytest.approx(SLACK * 0.001)
    last_s = arrive(company, STRIDE - 2, 0.002, last_s + 0.002)
    company.add(last_s + 0.001)
    assert company.rest_of_burst_s(WORTH_S) == pytest.approx(SLACK * 0.001)
    company.add(company.last_s + 0.001)
    assert company.rest_of_burst_s(WORTH_S) == pytest.approx(SLACK * 0.002)
    assert company.rest_of_burst_s(0.0009) == 0.0


def test_whatever_it_is_worth_nobody_is_waited_for_once_bursts_are_over() -> None:
    company = Company()
    last_s = arrive_in_bursts(company, WINDOW // 5, size=5)
    assert company.rest_of_burst_s(WORTH_S) > company.rest_of_burst_s(0.0009) == 0.0
    arrive(company, 4, 0.2, last_s + 0.2)
    for _ in range(3):
        assert company.rest_of_burst_s(0.0009) == company.rest_of_burst_s(WORTH_S) == 0.0


def test_who_saves_nothing_is_not_waited_for() -> None:
    company = Company()
    arrive_in_bursts(company, 60, size=5)
    assert company.rest_of_burst_s(0.0) == company.rest_of_burst_s(-1.0) == 0.0


@pytest.mark.parametrize(("alone", "bursts"), [(8, False), (1, True)])
def test_arrivals_of_which_a_few_come_together_are_not_bursts(alone: int, bursts: bool) -> None:
    company = Company()
    moment_s = 0.0
    for _ in range(WINDOW // 2):
        for gap_s in (*[1.0] * alone, 0.001):
            moment_s += gap_s
            company.add(moment_s)
    assert (company.rest_of_burst_s(WORTH_S) > 0.0) is bursts


@pytest.mark.parametrize("since", [WINDOW, STRIDE])
def test_bursts_are_forgotten_soon_after_arrivals_are_spread(since: int) -> None:
    company = Company()
    last_s = arrive_in_bursts(company, WINDOW // 5, size=5)
    assert company.rest_of_burst_s(WORTH_S) > 0.0
    arrive(company, since, 0.2, last_s + 0.2)
    assert company.rest_of_burst_s(WORTH_S) == 0.0


@pytest.mark.parametrize(("size", "alone"), [(2, 9), (5, 4), (16, 3)])
def test_the_longer_bursts_are_the_fewer_must_come_alone_until_they_are_over(
    size: int, alone: int
) -> None:
    company = Company()
    last_s = arrive_in_bursts(company, 16 * STRIDE, size)
    assert company.rest_of_burst_s(WORTH_S) > 0.0
    last_s = arrive(company, alone - 1, 0.2, last_s + 0.2)
    assert company.rest_of_burst_s(WORTH_S) > 0.0
    company.add(last_s + 0.2)
    assert company.rest_of_burst_s(WORTH_S) == 0.0
    assert (1 / size) ** alone < RARE < (1 / size) ** (alone - 1)


def test_what_is_answered_does_not_hang_on_when_it_was_asked_before() -> None:
    random = Random(5)
    asked, left_alone = Company(), Company()
    now = 0.0
    for _ in range(2 * WINDOW):
        now += random.choice([0.001, 0.002, 0.004, 0.2]) * random.uniform(0.5, 1.0)
        asked.add(now)
        left_alone.add(now)
        asked.rest_of_burst_s(random.choice([WORTH_S / 2, WORTH_S]))
        kept = deepcopy(left_alone).rest_of_burst_s(WORTH_S)
        assert asked.rest_of_burst_s(WORTH_S) == kept
    assert kept > 0.0


def test_bursts_that_were_over_are_expected_again_when_they_come_again() -> None:
    company = Company()
    last_s = arrive_in_bursts(company, WINDOW // 5, size=5)
    assert company.rest_of_burst_s(WORTH_S) > 0.0
    last_s = arrive(company, 8, 0.2, last_s + 0.2)
    assert company.rest_of_burst_s(WORTH_S) == 0.0
    arrive(company, 2, 0.001, last_s + 1.0)
    assert company.rest_of_burst_s(WORTH_S) == pytest.approx(SLACK * 0.001)


@pytest.mark.parametrize("worth_s", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_independent_arrivals_and_a_lone_caller_do_not_come_in_bursts(
    seed: int, worth_s: float
) -> None:
    random = Random(seed)
    independent, lone = Company(), Company()
    independent_s = lone_s = 0.0
    for _ in range(4 * WINDOW):
        independent_s += random.expovariate(1.0)
        independent.add(independent_s)
        lone_s += 1.0 + random.uniform(0.0, 0.2)
        lone.add(lone_s)
        assert independent.rest_of_burst_s(worth_s) == lone.rest_of_burst_s(worth_s) == 0.0

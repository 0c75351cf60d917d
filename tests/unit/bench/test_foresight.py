"""What the best policy without foresight reaches, where that is known or bounded."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, pstdev

import numpy as np
import pytest
from bench.simulate.foresight import ARRIVALS, TIGHT, Bursts, Ticks, best_share, measure
from bench.simulate.profiles import GPU

POISSON, CV2, CV4 = ARRIVALS


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_who_cannot_wait_is_answered_where_the_worker_is_free(rate: float) -> None:
    # Whoever comes in one of the other four ticks of a batch is lost.
    assert best_share(Ticks(4, 1, 5), POISSON, rate) == pytest.approx(1 / (1 + 4 * rate), rel=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_who_may_wait_for_one_tick_is_answered_if_the_worker_is_free_then(rate: float) -> None:
    # A batch is followed by the next one at once unless nobody came with its last two ticks.
    problem = Ticks(4, 1, 6)
    found = best_share(problem, POISSON, rate)
    assert found == pytest.approx(1 / (5 * rate + (1 - rate) ** 2), rel=1e-5)
    alone = 1 / (1 + 4 * rate)
    assert alone < found < 1
    assert best_share(problem, POISSON, 0.9) > best_share(problem, POISSON, 0.95)


@pytest.mark.parametrize("bursts", [CV2, CV4])
def test_in_bursts_who_cannot_wait_finds_the_worker_busy_more_often(bursts: Bursts) -> None:
    rate = 0.1
    often, follows = bursts.phases(rate)
    busy, until_free = 4, np.linalg.matrix_power(follows, 5)[0]
    # Ticks until one comes, from either phase on: those of a burst, or of the silence before it.
    ends, begins = follows[0, 1], follows[1, 0]
    burst = (1 + (1 - often[0]) * ends / begins) / often[0]
    ticks = busy + until_free @ np.array([burst, burst + 1 / begins])
    found = best_share(Ticks(4, 1, 5), bursts, rate)
    assert found == pytest.approx(1 / (rate * ticks), rel=1e-5)
    assert found < best_share(Ticks(4, 1, 5), POISSON, rate)


@pytest.mark.parametrize(("bursts", "variation"), [(POISSON, 1.0), (CV2, 2.0), (CV4, 4.0)])
def test_gaps_vary_as_much_as_the_name_of_the_bursts_says(bursts: Bursts, variation: float) -> None:
    load = 0.05  # ticks are short then, beside gaps
    moments = TIGHT.arrivals(bursts, load, 20_000, seed=1)
    gaps = [(after - before) / TIGHT.tick_s for before, after in pairwise(moments)]
    assert fmean(gaps) == pytest.approx(1 / (load * TIGHT.rate), rel=0.1)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(variation, rel=0.05)


def test_two_ride_together_where_both_are_then_in_time() -> None:
    # Nearly every tick brings one: two ride, six ticks, with the next two in time for the next.
    assert best_share(Ticks(4, 1, 7), POISSON, 0.9999) == pytest.approx(2 / 6, rel=1e-3)


def test_more_than_one_arrival_in_a_tick_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at most one arrival per tick, got 1\.2 in a"):
        best_share(Ticks(4, 1, 5), CV2, 0.3)
    with pytest.raises(ValueError, match=r"got 1\.2 in a"):
        best_share(Ticks(4, 1, 5), POISSON, 1.2)


def test_the_learned_policy_is_below_the_best_and_that_is_below_who_knows_the_future() -> None:
    standings = list(measure(Ticks(6, 3, 20), [1.0], requests=8_000, seeds=2, processes=1))
    assert [s.process for s in standings] == ["poisson", "cv2", "cv4"]
    noise = 0.01
    for standing in standings:
        assert standing.load == 1.0
        assert 0.9 * standing.best < standing.ours < standing.best + noise
        assert standing.best < standing.foreseeing + noise


def test_the_problem_is_about_as_tight_as_the_point_that_it_stands_for() -> None:
    alone_s = GPU.duration_s(1, 0)
    allowed = (2.5 * alone_s - GPU.hop_s) / alone_s
    assert TIGHT.patience / TIGHT.duration(1) == pytest.approx(allowed, rel=0.01)
    assert TIGHT.duration(4) * TIGHT.tick_s == pytest.approx(GPU.duration_s(4, 0), rel=0.03)
    for bursts in ARRIVALS:
        moments = TIGHT.arrivals(bursts, 1.0, 10, seed=0)
        assert moments == sorted(moments)

"""What the best policy without foresight reaches, where that is known or bounded."""

from __future__ import annotations

import pytest
from bench.simulate.foresight import TIGHT, Ticks, best_share, measure
from bench.simulate.profiles import GPU


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_who_cannot_wait_is_answered_where_the_worker_is_free(rate: float) -> None:
    # Whoever comes in one of the other four ticks of a batch is lost.
    assert best_share(Ticks(4, 1, 5), rate) == pytest.approx(1 / (1 + 4 * rate), rel=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_who_may_wait_for_one_tick_is_answered_if_the_worker_is_free_then(rate: float) -> None:
    # A batch is followed by the next one at once unless nobody came with its last two ticks.
    problem = Ticks(4, 1, 6)
    found = best_share(problem, rate)
    assert found == pytest.approx(1 / (5 * rate + (1 - rate) ** 2), rel=1e-5)
    alone = 1 / (1 + 4 * rate)
    assert alone < found < 1
    assert best_share(problem, 0.9) > best_share(problem, 0.95)


def test_two_ride_together_where_both_are_then_in_time() -> None:
    # Nearly every tick brings one: two ride, six ticks, with the next two in time for the next.
    assert best_share(Ticks(4, 1, 7), 0.9999) == pytest.approx(2 / 6, rel=1e-3)


def test_the_learned_policy_is_below_the_best_and_that_is_below_who_knows_the_future() -> None:
    (standing,) = measure(Ticks(5, 1, 14, 1e-3), [1.0], requests=4_000, seeds=2)
    assert standing.load == 1.0
    noise = 0.01
    assert 0.9 * standing.best < standing.ours < standing.best + noise
    assert standing.best < standing.foreseeing + noise


def test_the_problem_is_about_as_tight_as_the_point_that_it_stands_for() -> None:
    alone_s = GPU.duration_s(1, 0)
    allowed = (2.5 * alone_s - GPU.hop_s) / alone_s
    assert TIGHT.patience / TIGHT.duration(1) == pytest.approx(allowed, rel=0.01)
    assert TIGHT.duration(4) * TIGHT.tick_s == pytest.approx(GPU.duration_s(4, 0), rel=0.03)
    assert TIGHT.arrivals(1.0, 10, seed=0) == sorted(TIGHT.arrivals(1.0, 10, seed=0))

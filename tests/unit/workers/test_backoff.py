"""When a lost worker is started again."""

from __future__ import annotations

from itertools import pairwise

import pytest

from headrace_server.workers.backoff import Backoff


def test_the_first_loss_is_made_good_at_once() -> None:
    assert Backoff().delay_s(1) == 0.0


def test_delays_double_up_to_the_maximum() -> None:
    backoff = Backoff(initial_s=0.25, max_s=2.0)
    assert [backoff.delay_s(losses) for losses in range(1, 8)] == [0, 0.25, 0.5, 1, 2, 2, 2]


def test_any_number_of_losses_has_a_delay() -> None:
    assert Backoff().delay_s(10**9) == Backoff().max_s


def test_delays_never_get_shorter() -> None:
    delays = [Backoff().delay_s(losses) for losses in range(1, 100)]
    assert all(earlier <= later for earlier, later in pairwise(delays))


@pytest.mark.parametrize(
    ("losses", "ready_for_s", "load_s", "counted"),
    [
        (0, 0.0, 3.0, 1),
        (4, 0.0, 0.0, 5),
        (4, 0.9, 0.1, 5),
        (4, 1.0, 0.1, 1),
        (4, 2.9, 3.0, 5),
        (4, 3.0, 3.0, 1),
        (4, 29.9, 600.0, 5),
        (4, 30.0, 600.0, 1),
    ],
)
def test_a_worker_that_was_well_for_as_long_as_it_loads_starts_from_one(
    losses: int, ready_for_s: float, load_s: float, counted: int
) -> None:
    assert Backoff(healthy_s=30.0).losses_after(losses, ready_for_s, load_s) == counted


def test_one_that_is_killed_from_outside_again_and_again_serves_most_of_the_time() -> None:
    """Every 20 s, while it takes 3 s to load."""
    backoff, losses, waited_s = Backoff(), 0, 0.0
    for _ in range(100):
        losses = backoff.losses_after(losses, 17.0, 3.0)
        waited_s += backoff.delay_s(losses)
    assert waited_s == 0.0

"""Requests that are not alike: what the learned policy makes of them, against fixed rules."""

from __future__ import annotations

import pytest
from bench.simulate import mixtures
from bench.simulate.mixtures import (
    ALONE,
    AT_ONCE,
    IN_FLIGHT,
    OURS,
    Closed,
    Mixtures,
    closed_loops,
    minorities,
)


@pytest.fixture(scope="module")
def closed() -> Mixtures:
    return Mixtures(closed_loops(seconds=8.0, seeds=1), [])


def test_ratios_are_of_the_same_number_in_flight() -> None:
    found = Mixtures(
        [
            Closed(1, OURS, 50.0, 0.02),
            Closed(4, OURS, 40.0, 0.1),
            Closed(1, AT_ONCE, 100.0, 0.01),
            Closed(4, AT_ONCE, 20.0, 0.4),
            Closed(16, OURS, 60.0, 0.3),
        ],
        [],
    )
    assert (found.over(AT_ONCE, 1), found.over(AT_ONCE, 4)) == (0.5, 2.0)
    assert found.p99_over(AT_ONCE, 4) == 0.25
    assert found.of_best_so_far(4) == 0.8
    assert found.of_best_so_far(16) == 1.2


def test_sentences_ride_with_those_of_their_length(closed: Mixtures) -> None:
    assert closed.over(AT_ONCE, 16) > 1.8
    assert closed.over(AT_ONCE, 64) > 2.5
    assert closed.over(ALONE, 64) > 1.5
    assert closed.p99_over(AT_ONCE, 64) < 0.5


def test_more_callers_never_lower_the_throughput_of_sentences(closed: Mixtures) -> None:
    assert closed.over(ALONE, 1) == pytest.approx(1.0)
    assert min(closed.of_best_so_far(in_flight) for in_flight in IN_FLIGHT[1:]) > 0.95


def test_a_few_of_another_key_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixtures, "LOADS", (0.6,))
    for point in minorities(requests=2_000, seeds=1):
        assert point.few.latency_s <= 1.05 * point.few_at_once.latency_s, point

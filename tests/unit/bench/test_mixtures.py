"""Requests that are not alike: what the learned policy makes of them, against fixed rules."""

from __future__ import annotations

from functools import partial

import pytest
from bench.simulate.mixtures import (
    ALONE,
    AT_ONCE,
    IN_FLIGHT,
    OURS,
    Closed,
    Hurry,
    Kind,
    Mixtures,
    Setup,
    closed_loops,
    hurries,
    kinds,
    minorities,
)
from bench.simulate.policies import learned
from bench.simulate.profiles import GPU, SWEPT_LENGTHS, TEXT

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.policy import Decision, Hold, Opening
from headrace_server.core.queue import Queue
from headrace_server.workers.sweep import LENGTHS

SETUP, OTHER = Setup("text", 0.001), Setup("text-xeon", 0.001)


@pytest.fixture(scope="module")
def closed() -> Mixtures:
    return Mixtures(closed_loops(seconds=8.0, seeds=1, setups=[SETUP]), [], [])


def test_ratios_are_of_the_same_setup_and_number_in_flight() -> None:
    found = Mixtures(
        [
            Closed(SETUP, 1, OURS, 50.0, 0.02),
            Closed(SETUP, 4, OURS, 40.0, 0.1),
            Closed(SETUP, 1, AT_ONCE, 100.0, 0.01),
            Closed(SETUP, 4, AT_ONCE, 20.0, 0.4),
            Closed(SETUP, 16, OURS, 60.0, 0.3),
            Closed(OTHER, 4, OURS, 10.0, 0.3),
            Closed(OTHER, 4, AT_ONCE, 10.0, 0.3),
        ],
        [],
        [],
    )
    assert found.over(AT_ONCE, 1, SETUP) == 0.5
    assert found.over(AT_ONCE, 4, SETUP) == 2.0
    assert found.over(AT_ONCE, 4, OTHER) == 1.0
    assert found.p99_over(AT_ONCE, 4, SETUP) == 0.25
    assert found.over_fewer(4, SETUP) == 0.8
    assert found.over_fewer(16, SETUP) == 1.2


def test_simulated_sweep_tries_the_lengths_that_the_server_tries() -> None:
    assert SWEPT_LENGTHS == LENGTHS
    assert sorted({length for _, length, _ in TEXT.sweep()}) == sorted(LENGTHS)


def test_sentences_ride_with_those_of_their_length(closed: Mixtures) -> None:
    assert closed.over(AT_ONCE, 16, SETUP) > 1.5
    assert closed.over(AT_ONCE, 64, SETUP) > 2.5
    assert closed.over(ALONE, 64, SETUP) > 1.5
    assert closed.p99_over(AT_ONCE, 64, SETUP) < 0.5


def test_more_callers_hardly_ever_lower_the_throughput_of_sentences(closed: Mixtures) -> None:
    assert closed.over(ALONE, 1, SETUP) == pytest.approx(1.0)
    assert min(closed.over_fewer(in_flight, SETUP) for in_flight in IN_FLIGHT[1:]) > 0.95


def test_a_few_of_another_key_wait_for_nobody() -> None:
    for point in minorities(requests=4_000, seeds=2, loads=[0.6]):
        assert point.few.latency_s <= 1.05 * point.few_at_once.latency_s, point
        assert point.few.on_time >= 0.95 * point.few_at_once.on_time, point


def test_a_few_in_a_hurry_are_not_given_up_for_others_who_are_not() -> None:
    for point in hurries(requests=3_000, seeds=2, loads=[0.7]):
        assert point.hurried >= 0.4, point
        assert point.others >= 0.95 * point.others_at_once, point
        assert point.all_over_at_once > 1.02, point


def test_a_share_of_all_weighs_both_kinds() -> None:
    hurry = Hurry("poisson", 1, 0.7, 0.25, 1.0, 0.6, 0.5, 0.1)
    assert hurry.all_over_at_once == pytest.approx((0.25 + 0.45) / (0.125 + 0.075))


class Patient(AdaptivePolicy):
    """Serves the few only while the many do not wait."""

    def form(self, queue: Queue, opening: Opening) -> Decision:
        groups = [group for group in queue.groups() if not group.head.key]
        if groups:
            return self._form_group(groups[0], opening)
        decision = super().form(queue, opening)
        return decision if queue.rows > 1 else Hold(opening.now + 0.02)


def test_a_policy_that_neglects_the_few_is_seen() -> None:
    def few(policy: type[AdaptivePolicy]) -> Kind:
        make = partial(policy, GPU.most_rows, GPU.sweep(), timer_s=0.0)
        return kinds(make, "poisson", 1, 0.6, requests=2_000, seeds=1)[1]

    assert few(Patient).on_time < 0.5 * few(AdaptivePolicy).on_time
    assert kinds(partial(learned, GPU), "poisson", 1, 0.6, requests=2_000, seeds=1)[1] == few(
        AdaptivePolicy
    )

"""What counts as a sign that durations are as expected, and for how long."""

from __future__ import annotations

from collections.abc import Hashable

from headrace_server.core.confirmed import MOST_LIKES, PROBE_S, TOO_FAST, Confirmed
from headrace_server.core.request import Batch, DispatchReason
from scheduler_driver import make_request

EXPECTED_S = 0.010


def ran(
    confirmed: Confirmed, *lengths: int, took_s: float = EXPECTED_S, key: Hashable = "image"
) -> None:
    """A batch of requests of these lengths began at 0."""
    requests = [make_request(i, key=key, length=length) for i, length in enumerate(lengths)]
    batch = Batch(0, 0, requests, len(requests), DispatchReason.IMMEDIATE, 0.0)
    batch.started_s, batch.expected_s = 0.0, EXPECTED_S
    confirmed.observe(batch, took_s)


def test_a_batch_that_took_what_was_expected_confirms_it_for_a_while() -> None:
    confirmed = Confirmed()
    alike = make_request(9, key="image")
    assert not confirmed.lately(alike, 0.0)
    ran(confirmed, 0)
    assert confirmed.lately(alike, EXPECTED_S + PROBE_S)
    assert not confirmed.lately(alike, EXPECTED_S + PROBE_S + 0.001)


def test_a_batch_that_took_longer_confirms_it_all_the_more() -> None:
    confirmed = Confirmed()
    ran(confirmed, 0, took_s=10 * EXPECTED_S)
    assert confirmed.lately(make_request(9, key="image"), 10 * EXPECTED_S)


def test_a_batch_that_was_much_faster_confirms_nothing() -> None:
    confirmed = Confirmed()
    ran(confirmed, 0, took_s=EXPECTED_S / TOO_FAST)
    assert not confirmed.lately(make_request(9, key="image"), EXPECTED_S)


def test_only_requests_of_the_same_key_are_alike() -> None:
    confirmed = Confirmed()
    ran(confirmed, 0)
    assert not confirmed.lately(make_request(9, key="text"), EXPECTED_S)


def test_every_length_of_a_batch_is_confirmed_and_those_about_as_long() -> None:
    confirmed = Confirmed()
    ran(confirmed, 16, 100)
    assert confirmed.lately(make_request(9, key="image", length=31), EXPECTED_S)
    assert confirmed.lately(make_request(9, key="image", length=64), EXPECTED_S)
    assert not confirmed.lately(make_request(9, key="image", length=32), EXPECTED_S)


def test_keys_without_number_do_not_fill_memory() -> None:
    confirmed = Confirmed()
    for number in range(3 * MOST_LIKES):
        ran(confirmed, 0, key=number)
    assert len(confirmed._done_s) <= MOST_LIKES + 1

"""When a failed call is tried again, and how long that takes."""

from __future__ import annotations

import math
import re
from random import Random
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.attempts import MAX_TIMEOUT_S, Attempts
from headrace.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    ServerError,
    Unavailable,
)
from headrace.retry import RetryPolicy

UNREACHABLE = Unavailable(grpc.StatusCode.UNAVAILABLE, "connection refused")
POLICY = RetryPolicy(max_attempts=5, initial_backoff_s=0.1, max_backoff_s=0.3, multiplier=2.0)


def refused(retry_after_s: float | None) -> Unavailable:
    return Unavailable(
        grpc.StatusCode.UNAVAILABLE, "full", "queue_full", retry_after_s=retry_after_s
    )


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (UNREACHABLE, True),
        (refused(0.0), True),
        (refused(0.5), True),
        (refused(None), False),
        (InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, "no"), False),
        (Unavailable(grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large"), False),
        (ServerError(grpc.StatusCode.INTERNAL, "lost", "worker_lost", retry_after_s=0.1), True),
    ],
)
def test_only_calls_that_may_succeed_are_tried_again(error: ServerError, retried: bool) -> None:
    assert (POLICY.delay(1, error, None, Random(1)) is not None) is retried


@given(st.integers(1, 4), st.none() | st.floats(0, 10), st.integers())
def test_wait_is_between_the_hint_and_the_ceiling_above_it(
    attempt: int, retry_after_s: float | None, seed: int
) -> None:
    error = UNREACHABLE if retry_after_s is None else refused(retry_after_s)
    hint_s = retry_after_s or 0.0
    delay_s = POLICY.delay(attempt, error, None, Random(seed))
    assert delay_s is not None
    assert hint_s <= delay_s <= hint_s + min(0.3, 0.1 * 2 ** (attempt - 1))


def test_waits_are_spread_over_the_whole_range() -> None:
    random = Random(7)
    delays = [POLICY.delay(1, UNREACHABLE, None, random) for _ in range(1000)]
    quarters = [sum(q / 40 <= (d or 0) < (q + 1) / 40 for d in delays) for q in range(4)]
    assert sum(quarters) == 1000
    assert min(quarters) > 200


@pytest.mark.parametrize("multiplier", [2.0, 2])
@pytest.mark.parametrize(("initial_backoff_s", "ceiling_s"), [(0.1, 0.3), (0.0, 0.0)])
def test_after_any_number_of_attempts_the_ceiling_stays(
    multiplier: float, initial_backoff_s: float, ceiling_s: float
) -> None:
    endless = RetryPolicy(10**9, initial_backoff_s, 0.3, multiplier)
    for attempt in (1_024, 1_025, 5_000):
        delay_s = endless.delay(attempt, UNREACHABLE, None, Random(1))
        assert delay_s == Random(1).uniform(0.0, ceiling_s)


def test_attempts_are_bounded() -> None:
    assert POLICY.delay(4, UNREACHABLE, None, Random(1)) is not None
    assert POLICY.delay(5, UNREACHABLE, None, Random(1)) is None


def test_no_wait_goes_beyond_the_deadline() -> None:
    assert POLICY.delay(1, refused(0.5), 0.5, Random(1)) is None
    assert POLICY.delay(1, refused(0.5), 0.7, Random(1)) is not None


def test_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="max_attempts of at least 1, got 0"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(ValueError, match="got 2 and 1"):
        RetryPolicy(initial_backoff_s=2, max_backoff_s=1)
    with pytest.raises(ValueError, match=r"multiplier of at least 1, got 0\.5"):
        RetryPolicy(multiplier=0.5)


def test_all_attempts_share_one_deadline() -> None:
    now_s = 100.0
    attempts = Attempts(POLICY, 2.0, Random(1), clock=lambda: now_s)
    assert attempts.remaining_s() == 2.0
    now_s = 101.5
    assert attempts.remaining_s() == 0.5
    assert attempts.delay_after(refused(0.6)) is None
    now_s = 103.0
    assert attempts.remaining_s() == 0.0
    assert Attempts(POLICY, None, Random(1)).remaining_s() is None


@pytest.mark.parametrize(
    ("timeout_s", "remaining_s"),
    [(MAX_TIMEOUT_S, MAX_TIMEOUT_S), (1e10, None), (10**400, None), (math.inf, None)],
)
def test_a_timeout_beyond_what_grpc_can_count_is_no_limit(
    timeout_s: float, remaining_s: float | None
) -> None:
    attempts = Attempts(POLICY, timeout_s, Random(1), clock=lambda: 0.0)
    assert attempts.remaining_s() == remaining_s


@pytest.mark.parametrize("timeout_s", [0, -1.5, -math.inf])
def test_a_timeout_that_is_over_ends_the_call_before_it_begins(timeout_s: float) -> None:
    expected = f"the timeout of {timeout_s} s had passed before the call began"
    with pytest.raises(DeadlineExceeded, match=expected):
        Attempts(POLICY, timeout_s, Random(1))


@pytest.mark.parametrize("timeout_s", [math.nan, "1", [1], {}])
def test_a_timeout_that_is_no_number_is_refused(timeout_s: Any) -> None:
    with pytest.raises(
        InvalidInput, match=re.escape(f"expected a timeout in seconds, got {timeout_s!r}")
    ):
        Attempts(POLICY, timeout_s, Random(1))

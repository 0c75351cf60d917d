"""Token buckets: what passes in a second, and how long the next one waits."""

from __future__ import annotations

import pytest

from headrace_server.transport.token_bucket import TokenBucket


def passed(bucket: TokenBucket, moments: list[float], amount: float = 1) -> list[float]:
    taken = []
    for moment in moments:
        if bucket.wait_s(moment) == 0:
            bucket.take(amount)
            taken.append(moment)
    return taken


def test_a_second_of_silence_is_saved_up_and_no_more() -> None:
    bucket = TokenBucket(4, now=0)
    assert passed(bucket, [0] * 10) == [0] * 4
    assert passed(bucket, [100] * 10) == [100] * 4


def test_the_wait_ends_when_one_unit_is_there() -> None:
    bucket = TokenBucket(4, now=0)
    bucket.take(4)
    assert bucket.wait_s(0) == 0.25
    assert bucket.wait_s(0.125) == 0.125
    assert bucket.wait_s(0.25) == 0


def test_a_rate_below_one_lets_the_first_one_pass_at_once() -> None:
    bucket = TokenBucket(0.5, now=0)
    assert passed(bucket, [0, 1, 1.9, 2, 3, 4]) == [0, 2, 4]


def test_more_than_a_second_is_worth_passes_and_is_paid_for_afterwards() -> None:
    bucket = TokenBucket(100, now=0)
    assert passed(bucket, [0], amount=1_000) == [0]
    assert bucket.wait_s(0) == pytest.approx(9.01)
    assert bucket.wait_s(9) == pytest.approx(0.01)


def test_over_a_long_time_the_average_is_the_rate() -> None:
    bucket = TokenBucket(8, now=0)
    moments = [tick / 64 for tick in range(64 * 100)]
    # What was saved up, and eight in each of the hundred seconds.
    assert 8 * 100 <= len(passed(bucket, moments)) <= 8 * 101

"""The static policy: preferred sizes, delays, and nobody held up by odd shapes."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_server.core.policy import (
    OTHER_GROUPS,
    Formation,
    Hold,
    Opening,
    StaticPolicy,
    StaticSettings,
)
from headrace_server.core.queue import Queue, QueueLimits
from headrace_server.core.request import Batch, DispatchReason, Request
from scheduler_driver import make_request


def policy(**settings: Any) -> StaticPolicy:
    return StaticPolicy(StaticSettings(**{"max_batch_size": 8, **settings}))


def queue_of(*requests: Request) -> Queue:
    queue = Queue(QueueLimits())
    for request in requests:
        queue.push(request)
    return queue


def rows(*sizes: int) -> Queue:
    return queue_of(*(make_request(i, rows=size) for i, size in enumerate(sizes, start=1)))


def at(now: float) -> Opening:
    return Opening(now, [now])


def formed(policy: StaticPolicy, queue: Queue, now: float = 0.0) -> Formation:
    decision = policy.form(queue, at(now))
    assert isinstance(decision, Formation)
    assert decision.rows == sum(request.rows for request in decision.requests)
    return decision


def ids(formation: Formation) -> list[int]:
    return [request.id for request in formation.requests]


class TestWithoutDelay:
    def test_whatever_waits_goes(self) -> None:
        formation = formed(policy(), rows(1, 2))
        assert ids(formation) == [1, 2]
        assert formation.reason is DispatchReason.IMMEDIATE
        assert not formation.complete

    def test_a_batch_is_full_at_max_batch_size(self) -> None:
        formation = formed(policy(), rows(3, 5, 1))
        assert ids(formation) == [1, 2]
        assert formation.reason is DispatchReason.FULL
        assert formation.complete

    def test_a_request_that_does_not_fit_is_not_split_and_not_overtaken(self) -> None:
        formation = formed(policy(), rows(6, 3, 1))
        assert ids(formation) == [1]
        assert formation.reason is DispatchReason.FULL
        assert formation.complete

    def test_a_request_larger_than_the_limit_rides_alone(self) -> None:
        formation = formed(policy(max_batch_size=4), rows(9, 1))
        assert (ids(formation), formation.rows) == ([1], 9)
        assert formation.complete

    def test_bytes_bound_a_batch(self) -> None:
        queue = queue_of(*(make_request(i, nbytes=40) for i in (1, 2, 3)))
        formation = formed(policy(max_batch_bytes=100), queue)
        assert ids(formation) == [1, 2]
        assert formation.complete

    def test_a_request_larger_than_the_byte_bound_rides_alone(self) -> None:
        queue = queue_of(make_request(1, nbytes=101), make_request(2, nbytes=1))
        assert ids(formed(policy(max_batch_bytes=100), queue)) == [1]

    def test_keys_never_mix(self) -> None:
        queue = queue_of(
            make_request(1, key="a"), make_request(2, key="b"), make_request(3, key="a")
        )
        assert ids(formed(policy(), queue)) == [1, 3]

    def test_the_most_urgent_request_decides_the_key(self) -> None:
        queue = queue_of(make_request(1, key="a", priority=2), make_request(2, key="b"))
        assert ids(formed(policy(), queue)) == [2]

    def test_less_urgent_requests_of_the_same_key_ride_along(self) -> None:
        queue = queue_of(make_request(1, priority=2), make_request(2, priority=1))
        assert ids(formed(policy(), queue)) == [2, 1]

    def test_a_preferred_size_goes_before_a_larger_other_one(self) -> None:
        formation = formed(policy(preferred_sizes=[4]), rows(2, 2, 1))
        assert ids(formation) == [1, 2]
        assert formation.reason is DispatchReason.PREFERRED


class TestPreferredSizes:
    def test_the_largest_size_that_is_reached_wins(self) -> None:
        formation = formed(policy(preferred_sizes=[2, 4, 8]), rows(2, 2, 1))
        assert (ids(formation), formation.rows) == ([1, 2], 4)
        assert formation.reason is DispatchReason.PREFERRED
        assert not formation.complete, "8 might still be reached"

    def test_the_largest_of_all_is_complete(self) -> None:
        formation = formed(policy(preferred_sizes=[2, 4]), rows(2, 2))
        assert formation.complete

    def test_a_size_reached_only_by_splitting_is_not_reached(self) -> None:
        decision = policy(preferred_sizes=[4], max_delay_s=1.0).form(rows(3, 2), at(0.5))
        assert decision == Hold(1.0)

    def test_when_nothing_more_fits_a_smaller_size_still_wins(self) -> None:
        formation = formed(policy(preferred_sizes=[4], max_delay_s=1.0), rows(4, 3, 2))
        assert ids(formation) == [1]
        assert formation.reason is DispatchReason.PREFERRED
        assert formation.complete

    def test_when_nothing_more_fits_and_no_size_is_reached_all_goes(self) -> None:
        formation = formed(policy(preferred_sizes=[4], max_delay_s=1.0), rows(5, 2, 2))
        assert ids(formation) == [1, 2]
        assert formation.reason is DispatchReason.FULL

    def test_max_batch_size_alone_is_preferred_by_default(self) -> None:
        assert policy(max_delay_s=1.0).form(rows(4, 3), at(0.0)) == Hold(1.0)
        assert formed(policy(max_delay_s=1.0), rows(4, 4)).reason is DispatchReason.FULL

    @pytest.mark.parametrize("size", [0, 9])
    def test_a_size_that_no_batch_can_have_is_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match=rf"within 1 and 8, got \[{size}\]"):
            StaticSettings(8, [2, size])

    def test_a_batch_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 1, got 0"):
            StaticSettings(0)


class TestDelay:
    def test_a_request_waits_for_company_until_the_delay_has_passed(self) -> None:
        queue = queue_of(make_request(1, at=10.0))
        held = policy(max_delay_s=0.5)
        assert held.form(queue, at(10.0)) == Hold(10.5)
        assert held.form(queue, at(10.4)) == Hold(10.5)
        formation = formed(held, queue, 10.5)
        assert formation.reason is DispatchReason.DELAY_EXPIRED
        assert not formation.complete

    def test_an_expired_delay_sends_everything_even_beyond_a_preferred_size(self) -> None:
        held = policy(preferred_sizes=[2], max_delay_s=0.5)
        queue = rows(1, 1, 1)
        assert ids(formed(held, queue, 0.4)) == [1, 2]
        formation = formed(held, queue, 0.5)
        assert ids(formation) == [1, 2, 3]
        assert formation.reason is DispatchReason.DELAY_EXPIRED

    def test_an_expired_delay_sends_no_more_than_a_full_batch(self) -> None:
        formation = formed(policy(preferred_sizes=[2], max_delay_s=0.5), rows(1, 1, 4, 3), 0.5)
        assert ids(formation) == [1, 2, 3]
        assert formation.complete

    def test_the_oldest_request_counts_not_the_most_urgent(self) -> None:
        queue = queue_of(make_request(1, at=0.0, priority=2), make_request(2, at=0.9, priority=1))
        held = policy(max_delay_s=1.0)
        assert held.form(queue, at(0.9)) == Hold(1.0)
        assert ids(formed(held, queue, 1.0)) == [2, 1]

    def test_a_ready_group_of_another_key_goes_first(self) -> None:
        queue = queue_of(
            make_request(1, key="odd"), *(make_request(i, key="a", rows=4) for i in (2, 3))
        )
        assert ids(formed(policy(max_delay_s=1.0), queue)) == [2, 3]

    def test_the_earliest_due_group_ends_the_hold(self) -> None:
        queue = queue_of(
            make_request(1, key="b", at=0.0, priority=2),
            make_request(2, key="a", at=0.9, priority=1),
        )
        held = policy(max_delay_s=1.0)
        assert held.form(queue, at(0.9)) == Hold(1.0)
        assert ids(formed(held, queue, 1.0)) == [1]

    def test_no_more_than_a_bounded_number_of_groups_is_examined(self) -> None:
        held = policy(max_delay_s=1.0)
        queue = queue_of(
            *(make_request(i, key=i) for i in range(OTHER_GROUPS)),
            make_request(99, key="full", rows=8),
        )
        assert held.form(queue, at(0.0)) == Hold(1.0)


def test_fixed_rules_go_by_no_costs() -> None:
    batch = Batch(0, 0, [make_request(1, rows=3)], 3, DispatchReason.FULL, dispatched_s=0.0)
    fixed = policy()
    assert fixed.durations_s(batch) == (None, None)
    fixed.observe(batch, 0.25)
    assert fixed.durations_s(batch) == (None, pytest.approx(0.25)), "to tell slow from hung"

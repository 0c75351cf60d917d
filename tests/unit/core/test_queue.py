"""The queue: order, bounds, deadlines, neighbours by length."""

from __future__ import annotations

import math

import pytest

from headrace_server.core.queue import Queue, QueueLimits
from scheduler_driver import make_request


def ids(queue: Queue) -> list[int]:
    queue.check_invariants()
    return [request.id for request in queue]


def test_requests_wait_in_order_of_arrival() -> None:
    queue = Queue(QueueLimits())
    for request_id in (1, 2, 3):
        queue.push(make_request(request_id))
    assert ids(queue) == [1, 2, 3]
    assert queue.most_urgent().id == 1


def test_a_more_urgent_level_goes_before_earlier_arrivals() -> None:
    queue = Queue(QueueLimits())
    queue.push(make_request(1, priority=2))
    queue.push(make_request(2, priority=1))
    queue.push(make_request(3, priority=2**64 - 1))
    queue.push(make_request(4, priority=1))
    assert ids(queue) == [2, 4, 1, 3]
    assert queue.most_urgent().id == 2


def test_work_given_back_goes_to_its_old_place() -> None:
    queue = Queue(QueueLimits())
    queue.push(make_request(1, priority=1, at=0.0))
    back = make_request(2, priority=2, at=1.0)
    queue.push(back)
    queue.push(make_request(3, priority=2, at=2.0))
    queue.remove(back)
    queue.push(back)
    assert ids(queue) == [1, 2, 3]
    assert [r.id for r in queue.group("a").requests] == [1, 2, 3]


def test_the_order_is_the_urgency_that_the_queue_is_given() -> None:
    queue = Queue(QueueLimits(), lambda request: (0, -request.arrival_s))
    for request_id, at in ((1, 0.0), (2, 2.0), (3, 1.0)):
        queue.push(make_request(request_id, at=at))
    assert ids(queue) == [2, 3, 1]
    assert queue.most_urgent().id == 2


def test_rows_and_bytes_of_what_waits_are_counted() -> None:
    queue = Queue(QueueLimits())
    first, second = make_request(1, rows=3, nbytes=30), make_request(2, rows=2, nbytes=20)
    queue.push(first)
    queue.push(second)
    assert (len(queue), queue.rows, queue.nbytes) == (2, 5, 50)
    queue.remove(first)
    assert (len(queue), queue.rows, queue.nbytes) == (1, 2, 20)
    assert not first.waits
    assert second.waits
    queue.remove(second)
    assert (len(queue), queue.rows, queue.nbytes) == (0, 0, 0)
    assert ids(queue) == []


def test_groups_hold_one_key_across_levels() -> None:
    queue = Queue(QueueLimits())
    queue.push(make_request(1, key="a", priority=2))
    queue.push(make_request(2, key="b", priority=1))
    queue.push(make_request(3, key="a", priority=1))
    assert [r.id for r in queue.group("a").requests] == [3, 1]
    assert [r.id for r in queue.group("b").requests] == [2]
    assert {g.head.id for g in queue.groups()} == {2, 3}


def test_removing_one_key_leaves_the_others() -> None:
    queue = Queue(QueueLimits())
    only, first, second = (make_request(i, key=k) for i, k in ((1, "b"), (2, "a"), (3, "a")))
    for request in (only, first, second):
        queue.push(request)
    queue.remove(only)
    queue.remove(first)
    assert ids(queue) == [3]
    assert [g.head.id for g in queue.groups()] == [3]


def test_the_next_of_a_group_may_be_the_most_urgent() -> None:
    queue = Queue(QueueLimits())
    requests = [make_request(i, key="ab"[i % 2], at=float(i)) for i in range(4)]
    for request in requests:
        queue.push(request)
    queue.remove(requests[0])
    assert queue.most_urgent().id == 1
    queue.remove(requests[1])
    assert queue.most_urgent().id == 2
    queue.remove(requests[3])
    assert queue.most_urgent().id == 2


def test_memory_does_not_grow_with_heads_that_were_overtaken() -> None:
    queue = Queue(QueueLimits(), lambda request: (0, -request.arrival_s))
    queue.push(make_request(0, key="other", at=1e9))
    for request_id in range(1, 1_000):
        queue.push(make_request(request_id, at=float(request_id)))
    assert len(queue._heads) <= 64 + 2 * 2
    assert queue.most_urgent().id == 0
    queue.remove(queue.most_urgent())
    assert queue.most_urgent().id == 999


class TestRoom:
    def test_the_number_of_requests_is_bounded(self) -> None:
        queue = Queue(QueueLimits(max_requests=2))
        queue.push(make_request(1))
        assert queue.has_room_for(make_request(2))
        queue.push(make_request(2))
        assert not queue.has_room_for(make_request(3))

    def test_the_bytes_are_bounded(self) -> None:
        queue = Queue(QueueLimits(max_bytes=100))
        queue.push(make_request(1, nbytes=60))
        assert queue.has_room_for(make_request(2, nbytes=40))
        assert not queue.has_room_for(make_request(2, nbytes=41))

    def test_a_request_larger_than_the_bound_may_wait_alone(self) -> None:
        queue = Queue(QueueLimits(max_bytes=100))
        assert queue.has_room_for(make_request(1, nbytes=101))
        queue.push(make_request(1, nbytes=101))
        assert not queue.has_room_for(make_request(2, nbytes=1))

    def test_each_level_has_its_own_bound(self) -> None:
        queue = Queue(
            QueueLimits(max_requests_by_level={1: 1, 3: 0}, default_max_requests_by_level=2)
        )
        assert queue.has_room_for(make_request(1, priority=1))
        for request_id, priority in enumerate((1, 2, 2, 3, 3, 3), start=1):
            queue.push(make_request(request_id, priority=priority))
        assert not queue.has_room_for(make_request(9, priority=1)), "bound of 1"
        assert not queue.has_room_for(make_request(9, priority=2)), "default bound of 2"
        assert queue.has_room_for(make_request(9, priority=3)), "0 is no bound"
        assert queue.has_room_for(make_request(9, priority=4)), "an empty level"
        queue.remove(queue.most_urgent())
        assert queue.has_room_for(make_request(9, priority=1)), "there is room again"
        queue.remove(queue.most_urgent())
        assert len(ids(queue)) == 4, "one of level 2 is left"

    @pytest.mark.parametrize("bounds", [{"max_requests": 0}, {"max_bytes": 0}])
    def test_bounds_below_one_are_refused(self, bounds: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"at least 1, got .*=0"):
            QueueLimits(**bounds)  # type: ignore[arg-type]


class TestDeadlines:
    def test_late_requests_are_named_once_in_order_of_deadline(self) -> None:
        queue = Queue(QueueLimits())
        for request_id, deadline_s in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 9.0)):
            queue.push(make_request(request_id, deadline_s=deadline_s))
        queue.push(make_request(5))
        assert queue.next_deadline_s() == 1.0
        assert queue.expire(0.999) == []
        assert [r.id for r in queue.expire(3.0)] == [2, 3, 1]
        assert queue.expire(3.0) == []
        assert queue.next_deadline_s() == 9.0

    def test_the_deadlines_of_requests_that_left_are_forgotten(self) -> None:
        queue = Queue(QueueLimits())
        gone, stays = make_request(1, deadline_s=1.0), make_request(2, deadline_s=2.0)
        queue.push(gone)
        queue.push(stays)
        queue.remove(gone)
        assert queue.next_deadline_s() == 2.0
        queue.remove(stays)
        assert queue.expire(5.0) == []
        assert queue.next_deadline_s() == math.inf

    def test_a_request_that_came_back_is_named_once(self) -> None:
        queue = Queue(QueueLimits())
        earliest, returned = make_request(1, deadline_s=1.0), make_request(2, deadline_s=2.0)
        queue.push(earliest)
        queue.push(returned)
        queue.remove(returned)
        queue.push(returned)
        assert [r.id for r in queue.expire(2.0)] == [1, 2]

    def test_a_demoted_request_goes_behind_all_others_of_its_level_and_is_not_named_again(
        self,
    ) -> None:
        queue = Queue(QueueLimits())
        late = make_request(1, deadline_s=1.0, priority=1)
        queue.push(late)
        queue.push(make_request(2, priority=1))
        queue.push(make_request(3, priority=2**64 - 1))
        queue.demote(late)
        assert ids(queue) == [2, 1, 3]
        assert [r.id for r in queue.group("a").requests] == [2, 1, 3]
        assert queue.next_deadline_s() == math.inf
        assert queue.expire(2.0) == []

    def test_a_demoted_request_counts_where_its_level_is_bounded(self) -> None:
        queue = Queue(QueueLimits(max_requests_by_level={1: 2}))
        late = make_request(1, deadline_s=1.0, priority=1)
        queue.push(late)
        queue.demote(late)
        queue.push(make_request(2, priority=1))
        assert not queue.has_room_for(make_request(3, priority=1))
        assert queue.has_room_for(make_request(3, priority=2))
        queue.remove(late)
        queue.check_invariants()
        assert queue.has_room_for(make_request(3, priority=1))

    def test_memory_does_not_grow_with_requests_that_left_long_before_their_deadline(self) -> None:
        queue = Queue(QueueLimits())
        for request_id in range(1_000):
            request = make_request(request_id, deadline_s=60.0 + request_id)
            queue.push(request)
            if request_id % 100:
                queue.remove(request)
        assert len(queue) == 10
        assert len(queue._deadlines) <= 64 + 2 * len(queue)
        assert [r.id for r in queue.expire(2_000.0)] == list(range(0, 1_000, 100))

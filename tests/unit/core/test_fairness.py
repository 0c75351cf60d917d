"""Who goes next and who is let in where several tenants wait, by weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.cost import CostModel
from headrace_server.core.errors import Reason
from headrace_server.core.events import Reject
from headrace_server.core.fairness import FairQueue
from headrace_server.core.queue import Queue, QueueLimits, by_level_and_arrival, is_delayed
from headrace_server.core.request import Request
from scheduler_driver import SchedulerDriver, make_request, rejections

AHEAD = 4
LIMITS = QueueLimits()


def fair(limits: QueueLimits = LIMITS, ahead: int = AHEAD) -> FairQueue:
    """A queue on which a row is a second of work."""
    return FairQueue(limits, by_level_and_arrival, lambda r: float(r.rows), ahead)


def fill(queue: Queue, tenant: str, number: int, first: int, **options: float) -> None:
    for request_id in range(first, first + number):
        queue.push(make_request(request_id, tenant=tenant, at=request_id, **options))  # type: ignore[arg-type]


def served(queue: Queue, batch: int = 1) -> Iterator[list[Request]]:
    """Batches of the most urgent requests, until nobody waits."""
    while len(queue):
        queue.check_invariants()
        chosen = queue.group(queue.most_urgent().key).requests[:batch]
        queue.remove_batch(chosen)
        yield chosen


def tenants(queue: Queue, number: int) -> str:
    """Of the next requests, one after the other."""
    return "".join(batch[0].tenant for batch in islice(served(queue), number))


def ids(requests: Iterator[Request] | list[Request]) -> list[int]:
    return [request.id for request in requests]


def test_equal_tenants_take_turns_however_much_one_of_them_sends() -> None:
    queue = fair()
    fill(queue, "a", 100, first=1)
    fill(queue, "b", 10, first=101)
    assert Counter(tenants(queue, 20)) == {"a": 10, "b": 10}
    assert tenants(queue, 100) == "a" * 90


def test_weight_is_the_share() -> None:
    queue = fair()
    fill(queue, "a", 100, first=1)
    fill(queue, "b", 100, first=101, weight=3.0)
    assert Counter(tenants(queue, 40)) == {"a": 10, "b": 30}


def test_it_is_work_that_is_shared_not_requests() -> None:
    queue = fair()
    fill(queue, "a", 50, first=1, rows=3)
    fill(queue, "b", 90, first=101)
    assert Counter(tenants(queue, 40)) == {"a": 10, "b": 30}


def test_who_comes_new_rides_in_the_next_batch_and_others_fill_it() -> None:
    queue = fair()
    fill(queue, "a", 20, first=1)
    batches = served(queue, batch=4)
    next(batches)
    fill(queue, "b", 1, first=100)
    assert ids(next(batches)) == [5, 100, 6, 7]
    assert ids(next(batches)) == [8, 9, 10, 11]


def test_within_a_tenant_the_most_urgent_goes_first() -> None:
    queue = fair(ahead=1)
    for request_id, priority in enumerate([2, 2, 3, 1], 1):
        queue.push(make_request(request_id, tenant="a", priority=priority))
    queue.push(make_request(9, tenant="b", priority=5))
    queue.push(make_request(5, tenant="a", priority=1))
    order = [batch[0] for batch in served(queue)]
    assert [r.id for r in order if r.tenant == "a"] == [4, 5, 1, 2, 3]


def test_who_was_away_has_saved_nothing_up() -> None:
    queue = fair()
    fill(queue, "a", 40, first=1)
    fill(queue, "b", 1, first=100)
    assert Counter(tenants(queue, 20)) == {"a": 19, "b": 1}
    fill(queue, "b", 20, first=101)
    assert Counter(tenants(queue, 20)) == {"a": 10, "b": 10}


def test_what_leaves_without_having_run_costs_nothing() -> None:
    queue = fair()
    fill(queue, "a", 20, first=1)
    fill(queue, "b", 20, first=101)
    for request in [r for r in queue if 101 <= r.id < 110]:  # ahead, and behind
        queue.remove(request)
        queue.check_invariants()
    assert Counter(tenants(queue, 10)) == {"a": 5, "b": 5}


def test_it_is_an_ordinary_queue_again_once_it_was_empty() -> None:
    queue = fair()
    fill(queue, "a", 2, first=1)
    fill(queue, "b", 1, first=11)
    assert queue.shared
    for request in list(queue):
        queue.remove(request)
    assert not queue.shared
    fill(queue, "b", 2, first=21)
    assert not queue.shared
    assert tenants(queue, 2) == "bb"


def test_deadlines_of_those_behind_count() -> None:
    queue = fair(ahead=1)
    for request_id in range(1, 5):
        queue.push(make_request(request_id, tenant="a", deadline_s=10.0 - request_id))
    queue.push(make_request(9, tenant="b", deadline_s=6.5))
    assert queue.next_deadline_s() == 6.0
    assert ids(queue.expire(7.0)) == [4, 9, 3]


def test_what_is_delayed_goes_behind_everything_of_everybody() -> None:
    queue = fair(ahead=2)
    fill(queue, "a", 4, first=1)
    fill(queue, "b", 2, first=11)
    delayed = next(r for r in queue if r.id == 1)
    queue.demote(delayed)
    queue.check_invariants()
    order = [batch[0].id for batch in served(queue)]
    assert order.index(1) == len(order) - 1
    assert len(order) == 6


def test_what_was_delayed_before_others_came_stays_behind() -> None:
    queue = fair()
    fill(queue, "a", 3, first=1)
    queue.demote(queue.most_urgent())
    fill(queue, "b", 1, first=11)
    assert [r.id for r in queue if is_delayed(r.place)] == [1]
    assert [batch[0].id for batch in served(queue)][-1] == 1


@pytest.mark.parametrize("ahead", [2, 100], ids=["of those behind", "of those ahead"])
def test_a_newcomer_takes_the_place_of_the_last_one_of_who_has_most(ahead: int) -> None:
    queue = fair(QueueLimits(max_requests=10), ahead)
    fill(queue, "a", 10, first=1)
    newcomer = make_request(101, tenant="b")
    assert not queue.has_room_for(newcomer)
    assert ids(queue.displace_for(newcomer)) == [10]
    queue.push(newcomer)
    queue.check_invariants()
    assert queue.displace_for(make_request(11, tenant="a")) == []
    for request_id in range(102, 106):
        assert len(queue.displace_for(make_request(request_id, tenant="b"))) == 1
        queue.push(make_request(request_id, tenant="b"))
    assert queue.displace_for(make_request(106, tenant="b")) == []
    assert Counter(r.tenant for r in queue) == {"a": 5, "b": 5}


def test_nobody_gives_way_where_one_tenant_waits_or_levels_have_bounds_of_their_own() -> None:
    queue = fair(QueueLimits(max_requests=3))
    assert queue.displace_for(make_request(1, nbytes=1 << 40)) == []
    fill(queue, "a", 3, first=1)
    assert queue.displace_for(make_request(4, tenant="a")) == []
    levels = fair(QueueLimits(max_requests=3, default_max_requests_by_level=2))
    fill(levels, "a", 2, first=1)
    fill(levels, "b", 1, first=11)
    assert levels.displace_for(make_request(4, tenant="b")) == []
    levels.check_invariants()
    assert tenants(levels, 3) == "aab"


def test_bytes_are_shared_like_requests() -> None:
    queue = fair(QueueLimits(max_bytes=1_000), ahead=2)
    fill(queue, "a", 10, first=1, nbytes=100)
    assert ids(queue.displace_for(make_request(101, tenant="b", nbytes=250))) == [10, 9, 8]
    queue.push(make_request(101, tenant="b", nbytes=250))
    assert ids(queue.displace_for(make_request(102, tenant="b", nbytes=250))) == [7, 6]
    queue.push(make_request(102, tenant="b", nbytes=250))
    # What it would have then is more than what would be left of the other.
    assert queue.displace_for(make_request(103, tenant="b", nbytes=250)) == []
    assert queue.displace_for(make_request(104, tenant="c", nbytes=2_000)) == []
    queue.check_invariants()


def test_who_gives_way_is_told_that_the_queue_is_full() -> None:
    driver = SchedulerDriver(workers=0, limits=QueueLimits(max_requests=2))
    driver.submit(1, tenant="a")
    driver.submit(2, tenant="a")
    assert rejections(driver.submit(3, tenant="a")) == [(3, Reason.QUEUE_FULL)]
    actions = driver.submit(4, tenant="b")
    assert [type(action) for action in actions] == [Reject]
    assert rejections(actions) == [(2, Reason.QUEUE_FULL)]
    assert sorted(r.id for r in driver.scheduler.queue) == [1, 4]


def test_work_is_what_a_request_takes_alone_and_its_rows_while_nothing_is_known() -> None:
    known = CostModel([(1, 0, 0.01), (8, 0, 0.08)])
    assert known.work_s(make_request(1, rows=4)) == pytest.approx(0.04, rel=0.05)
    policy = AdaptivePolicy(8, [(1, 0, 0.01), (8, 0, 0.08)])
    assert policy.work_s(make_request(1, rows=4)) == known.work_s(make_request(1, rows=4))
    unknown = CostModel()
    assert unknown.work_s(make_request(1, rows=3)) == 3 * unknown.work_s(make_request(2))


ARRIVALS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans()), min_size=1, max_size=80
)


@given(ARRIVALS, st.integers(1, 5), st.integers(1, 8), st.sampled_from([0.5, 1.0, 3.0]))
def test_shares_differ_by_no_more_than_the_bound_while_both_wait(
    arrivals: list[tuple[str, int, bool]], batch: int, ahead: int, weight: float
) -> None:
    """Over every stretch in which two tenants wait all the time."""
    queue = fair(ahead=ahead)
    weights = {"a": 1.0, "b": 2.0, "c": weight}
    had: dict[str, float] = dict.fromkeys(weights, 0.0)
    since: dict[tuple[str, str], float] = {}
    numbers = count()
    # One request of each, what was let ahead of each, and the batch that is just leaving.
    most = {t: (4 + (ahead + 4) + 4 * batch) / w for t, w in weights.items()}
    for tenant, rows, serve in arrivals:
        number = next(numbers)
        queue.push(
            make_request(number, rows=rows, at=number, tenant=tenant, weight=weights[tenant])
        )
        queue.check_invariants()
        if serve:
            chosen = queue.group("a").requests[:batch]
            queue.remove_batch(chosen)
            queue.check_invariants()
            for request in chosen:
                had[request.tenant] += request.rows / weights[request.tenant]
        waiting = {request.tenant for request in queue}
        for pair in (("a", "b"), ("a", "c"), ("b", "c")):
            if not waiting.issuperset(pair):
                since.pop(pair, None)
                continue
            lead = had[pair[0]] - had[pair[1]]
            began = since.setdefault(pair, lead)
            assert abs(lead - began) <= most[pair[0]] + most[pair[1]]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 40)), max_size=60),
)
def test_one_tenant_finds_the_queue_that_it_always_found(
    steps: list[tuple[int, int, int]],
) -> None:
    shared, plain = fair(), Queue(LIMITS)
    for number, (priority, key, step) in enumerate(steps):
        for queue in (shared, plain):
            deadline_s = math.inf if step % 3 else float(step)
            queue.push(
                make_request(number, key=key, priority=priority, tenant="a", deadline_s=deadline_s)
            )
            if step % 4 == 0:
                queue.remove(queue.most_urgent())
            elif step % 7 == 0:
                queue.demote(queue.most_urgent())
        assert ids(list(shared)) == ids(list(plain))
        assert shared.next_deadline_s() == plain.next_deadline_s()
        assert not shared.shared


def test_who_is_put_back_goes_before_those_of_its_tenant_that_came_later() -> None:
    queue = fair(ahead=1)
    first, *_ = requests = [make_request(i, tenant="a", at=0.0, key=i) for i in range(3)]
    for request in [*requests, make_request(9, tenant="b", at=0.0, key=9)]:
        queue.push(request)
    assert queue.most_urgent() is first
    queue.remove_batch([first])
    queue.push(first)
    queue.check_invariants()
    assert ids(batch[0] for batch in served(queue)) == [9, 0, 1, 2]


def test_what_is_urgent_goes_before_its_tenants_own_bulk_and_is_paid_for_all_the_same() -> None:
    queue = fair()
    fill(queue, "a", 40, first=1)
    fill(queue, "b", 40, first=101)
    assert tenants(queue, 4) == "abab"
    urgent = [make_request(i, tenant="a", at=-1.0) for i in range(201, 205)]
    for request in urgent:
        queue.push(request)
        queue.check_invariants()
    served_next = ids(batch[0] for batch in islice(served(queue), 8))
    assert [i for i in served_next if i < 101 or i > 200] == [201, 202, 203, 204]
    assert sum(100 < i <= 200 for i in served_next) == 4, "the other tenant has its half"
    assert ids(batch[0] for batch in served(queue) if batch[0].tenant == "a") == list(range(3, 41))


def test_what_is_late_and_delayed_keeps_nothing_fresh_of_its_tenant_behind() -> None:
    queue = fair()
    fill(queue, "a", 2 * AHEAD, first=1)
    fill(queue, "b", 100, first=101)
    for request in [r for r in queue if r.tenant == "a"]:
        queue.demote(request)
    queue.check_invariants()
    queue.push(make_request(201, tenant="a", at=99.0))
    queue.check_invariants()
    assert 201 in ids(batch[0] for batch in islice(served(queue), 2 * AHEAD))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 3))), st.data())
def test_each_tenants_own_go_in_order_of_urgency(
    arrivals: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    queue = fair(ahead=data.draw(st.integers(1, 6)))
    waiting: list[Request] = []
    for request_id, (tenant, at, rows) in enumerate(arrivals):
        if waiting and data.draw(st.booleans()):
            head = queue.most_urgent()
            own = [r for r in waiting if r.tenant == head.tenant]
            assert head is min(own, key=lambda r: (r.priority, r.arrival_s, r.id))
            queue.remove_batch([head])
            waiting.remove(head)
        request = make_request(request_id, tenant=tenant, at=float(at), rows=rows)
        queue.push(request)
        waiting.append(request)
        queue.check_invariants()

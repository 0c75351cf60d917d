"""The learned policy: who rides together, given what a batch costs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from headrace_server.core.adaptive import FEW, AdaptivePolicy
from headrace_server.core.arrivals import STRIDE
from headrace_server.core.confirmed import PROBE_S
from headrace_server.core.cost import Curve
from headrace_server.core.policy import Formation, Opening
from headrace_server.core.queue import Queue, QueueLimits
from headrace_server.core.request import Batch, DispatchReason, Request
from scheduler_driver import SchedulerDriver, dispatches, make_request

MAX_ROWS = 8
SAVES_A_FIFTH = Curve(base=2e-2, row=8e-2, element=0.0, pair=0.0)
BASE_DOMINATES = Curve(base=1e-1, row=1e-6, element=0.0, pair=0.0)
ROWS_DOMINATE = Curve(base=1e-4, row=1e-1, element=0.0, pair=0.0)
PADDING_RUINS = Curve(base=1e-2, row=1e-4, element=1e-3, pair=0.0)


def policy(curve: Curve | None, *, max_batch_bytes: int = 1 << 28) -> AdaptivePolicy:
    sweep = [] if curve is None else [(r, x, curve.at(r, x)) for r in (1, 4, 8) for x in (0, 9, 99)]
    return AdaptivePolicy(MAX_ROWS, sweep, max_batch_bytes)


def formed(policy: AdaptivePolicy, requests: Iterable[Request]) -> Formation:
    queue = Queue(QueueLimits(), policy.urgency)
    for request in requests:
        queue.push(request)
    decision = policy.form(queue, Opening(0.0, [0.0]))
    assert isinstance(decision, Formation)
    assert decision.rows == sum(request.rows for request in decision.requests)
    assert queue.most_urgent() in decision.requests
    return decision


def ids(formation: Formation) -> list[int]:
    return [request.id for request in formation.requests]


def of_lengths(*lengths: int) -> list[Request]:
    return [make_request(i, length=x) for i, x in enumerate(lengths, start=1)]


class TestEqualLengths:
    def test_a_lone_request_goes_at_once(self) -> None:
        for curve in (None, BASE_DOMINATES, ROWS_DOMINATE):
            formation = formed(policy(curve), of_lengths(0))
            assert ids(formation) == [1]
            assert formation.reason is DispatchReason.IMMEDIATE
            assert not formation.complete

    @pytest.mark.parametrize("curve", [None, BASE_DOMINATES])
    def test_whoever_waits_rides_where_batching_pays(self, curve: Curve | None) -> None:
        assert ids(formed(policy(curve), of_lengths(0, 0, 0))) == [1, 2, 3]

    def test_batches_stay_small_where_batching_gains_nothing(self) -> None:
        formation = formed(policy(ROWS_DOMINATE), of_lengths(0, 0, 0))
        assert ids(formation) == [1]
        assert formation.reason is DispatchReason.BEST_SIZE
        assert not formation.complete

    def test_a_few_go_one_by_one_where_that_is_quicker_on_the_mean(self) -> None:
        formation = formed(policy(SAVES_A_FIFTH), of_lengths(0, 0, 0))
        assert ids(formation) == [1]
        assert formation.reason is DispatchReason.BEST_SIZE

    def test_many_ride_together_for_the_same_gain(self) -> None:
        assert ids(formed(policy(SAVES_A_FIFTH), of_lengths(*[0] * (FEW + 1)))) == [1, 2, 3, 4]

    def test_brief_batches_are_saved_for_the_process_that_makes_them(self) -> None:
        brief = Curve(base=2e-4, row=8e-4, element=0.0, pair=0.0)
        assert ids(formed(policy(brief), of_lengths(0, 0, 0))) == [1, 2, 3]

    def test_a_few_ride_together_where_the_work_saved_is_needed(self) -> None:
        busy = policy(SAVES_A_FIFTH)
        for number in range(3 * STRIDE):  # 0.9 seconds of work per second
            busy.arrived(make_request(100 + number), (number - 3 * STRIDE) / 9)
        assert ids(formed(busy, of_lengths(0, 0, 0))) == [1, 2, 3]

    def test_a_few_ride_together_where_the_last_would_be_late_alone(self) -> None:
        requests = [make_request(i, deadline_s=0.27) for i in (1, 2, 3)]
        assert ids(formed(policy(SAVES_A_FIFTH), requests)) == [1, 2, 3]

    @pytest.mark.parametrize("curve", [None, BASE_DOMINATES])
    def test_a_batch_is_full_at_max_batch_size(self, curve: Curve | None) -> None:
        requests = [make_request(i, rows=4) for i in (1, 2, 3)]
        formation = formed(policy(curve), requests)
        assert ids(formation) == [1, 2]
        assert formation.reason is DispatchReason.FULL
        assert formation.complete

    def test_a_request_that_does_not_fit_is_not_split_and_not_overtaken(self) -> None:
        requests = [make_request(i, rows=rows) for i, rows in ((1, 6), (2, 3), (3, 1))]
        formation = formed(policy(None), requests)
        assert ids(formation) == [1]
        assert formation.complete

    def test_bytes_bound_a_batch(self) -> None:
        requests = [make_request(i, nbytes=40) for i in (1, 2, 3)]
        assert ids(formed(policy(None, max_batch_bytes=100), requests)) == [1, 2]

    def test_urgent_requests_ride_first(self) -> None:
        requests = [make_request(i, rows=4, priority=p) for i, p in ((1, 2), (2, 1), (3, 1))]
        assert ids(formed(policy(BASE_DOMINATES), requests)) == [2, 3]

    def test_nobody_of_another_length_rides_along_unseen(self) -> None:
        # So many of the anchor's length wait that nobody else is among its neighbours.
        formation = formed(policy(PADDING_RUINS), of_lengths(5, 99, *[5] * 20))
        assert 2 not in ids(formation)
        assert ids(formation) == sorted(ids(formation))


class TestMixedLengths:
    def test_similar_lengths_ride_together(self) -> None:
        formation = formed(policy(PADDING_RUINS), of_lengths(10, 99, 11, 98, 9, 97))
        assert sorted(ids(formation)) == [1, 3, 5]
        assert formation.reason is DispatchReason.BEST_WINDOW
        assert not formation.complete

    def test_the_anchor_rides_even_when_others_would_fit_better(self) -> None:
        assert ids(formed(policy(PADDING_RUINS), of_lengths(99, 1, 1, 1, 1))) == [1]

    def test_a_window_of_most_rows_is_complete(self) -> None:
        formation = formed(policy(BASE_DOMINATES), of_lengths(*range(1, 20)))
        assert formation.rows == MAX_ROWS
        assert formation.complete

    def test_a_window_keeps_to_rows_and_bytes(self) -> None:
        requests = [make_request(i, rows=3, nbytes=40, length=i) for i in range(1, 7)]
        assert formed(policy(BASE_DOMINATES), requests).rows == 6
        narrow = policy(BASE_DOMINATES, max_batch_bytes=50)
        assert ids(formed(narrow, requests)) == [1]

    def test_empty_requests_are_no_trouble(self) -> None:
        by_elements = Curve(base=0.0, row=0.0, element=1e-3, pair=0.0)
        assert 1 in ids(formed(policy(by_elements), of_lengths(0, 0, 7)))
        assert 1 in ids(formed(policy(by_elements), of_lengths(0, 0)))


class TestLearning:
    def test_nothing_is_expected_before_the_first_batch(self) -> None:
        batch = Batch(0, 0, of_lengths(7), 1, DispatchReason.IMMEDIATE, dispatched_s=0.0)
        assert policy(None).durations_s(batch) == (None, None)

    def test_a_batch_is_expected_to_run_as_long_as_one_like_it_did(self) -> None:
        learning = policy(None)
        batch = Batch(0, 0, of_lengths(7, 9), 2, DispatchReason.IMMEDIATE, dispatched_s=0.0)
        learning.observe(batch, 0.25)
        assert learning.durations_s(batch) == pytest.approx((0.25, 0.25))


class TestPadding:
    def test_the_padding_share_counts_what_nobody_asked_for(self) -> None:
        requests = [make_request(1, rows=1, length=10), make_request(2, rows=3, length=5)]
        batch = Batch(0, 0, requests, 4, DispatchReason.BEST_WINDOW, dispatched_s=0.0)
        assert batch.length == 10
        assert batch.padding_share == pytest.approx(1 - 25 / 40)

    def test_fixed_shapes_have_no_padding(self) -> None:
        batch = Batch(0, 0, of_lengths(0, 0), 2, DispatchReason.FULL, dispatched_s=0.0)
        assert batch.padding_share == 0.0


def test_a_batch_that_is_full_is_staged_behind_a_running_one() -> None:
    driver = SchedulerDriver(policy=policy(BASE_DOMINATES))
    driver.submit(1)
    driver.settle()
    for request in range(2, 2 + MAX_ROWS):
        driver.submit(request)
    driver.settle()
    assert [batch.rows for batch in driver.dispatched] == [1, MAX_ROWS]


@pytest.mark.parametrize("lengths", [(0, 0, 0), (3, 5, 9)])
def test_nobody_joins_a_batch_that_would_be_too_late_for_a_member(
    lengths: tuple[int, ...],
) -> None:
    curve = Curve(base=0.01, row=0.01, element=1e-5, pair=0.0)
    requests = [
        make_request(1, length=lengths[0]),
        make_request(2, length=lengths[1], deadline_s=0.035),
        make_request(3, length=lengths[2]),
    ]
    assert sorted(ids(formed(policy(curve), requests))) == [1, 2], "three would take 40 ms"


def test_a_request_that_is_late_anyway_still_rides() -> None:
    curve = Curve(base=0.1, row=0.01, element=1e-5, pair=0.0)
    requests = [make_request(1, length=3, deadline_s=0.05), make_request(2, length=9)]
    assert ids(formed(policy(curve), requests)) == [1]


def after_brief(count: int) -> SchedulerDriver:
    """A driver whose last batch had `count` requests, began at 0 and took 0.3 ms."""
    driver = SchedulerDriver(policy=AdaptivePolicy(16))
    for _ in range(count):
        driver.submit()
    driver.settle()
    driver.advance_to(0.0003)
    driver.complete(0)
    return driver


def test_after_a_brief_batch_of_many_the_next_goes_when_all_that_came_was_read() -> None:
    driver = after_brief(4)
    driver.submit(10)
    assert driver.settle() == []
    driver.submit(11)
    assert driver.settle() == []
    assert dispatches(driver.idle()) == [[10, 11]]


def test_a_process_that_is_always_busy_makes_nobody_wait_for_long() -> None:
    driver = after_brief(4)
    driver.submit(10)
    driver.settle()
    assert driver.scheduler.next_wakeup() == pytest.approx(0.006)
    driver.advance_to(0.0005)
    driver.submit(11)
    assert dispatches(driver.advance_to(0.006)) == [[10, 11]]


def test_it_goes_sooner_when_plenty_wait() -> None:
    driver = after_brief(4)
    driver.submit(10, rows=8)
    assert driver.settle() == []
    driver.submit(11, rows=8)
    assert dispatches(driver.settle()) == [[10, 11]]


def test_that_the_process_is_idle_is_no_news_where_nobody_waits_for_it() -> None:
    driver = after_brief(4)
    assert not driver.scheduler.awaits_idle
    assert driver.idle() == []
    driver.submit(10)
    assert driver.idle() == []
    driver.settle()
    assert dispatches(driver.idle()) == [[10]]
    assert not driver.scheduler.awaits_idle


@pytest.mark.parametrize("count", [1, 2, 3])
def test_callers_who_come_a_few_at_a_time_never_wait(count: int) -> None:
    driver = after_brief(count)
    driver.submit(10)
    assert dispatches(driver.settle()) == [[10]]


def test_who_is_due_within_milliseconds_does_not_wait_for_others() -> None:
    driver = after_brief(4)
    driver.submit(10, deadline_s=0.010)
    assert dispatches(driver.settle()) == [[10]]


def test_nor_do_those_who_are_due_so_soon_and_less_urgent() -> None:
    driver = after_brief(4)
    driver.submit(10, priority=1, deadline_s=1.0)
    driver.submit(11, priority=10, deadline_s=0.010)
    assert dispatches(driver.settle()) == [[10, 11]]


def test_after_a_long_batch_nobody_waits() -> None:
    driver = SchedulerDriver(policy=AdaptivePolicy(16))
    for _ in range(4):
        driver.submit()
    driver.settle()
    driver.advance_to(0.002)
    driver.submit(10)
    assert dispatches(driver.complete(0)) == [[10]]


class TestDoubt:
    """A device that has become ten times as fast as what is known of it, and deadlines that would
    only be met at its new speed."""

    KNOWN_S, NOW_S, DEADLINE_S = 0.1, 0.01, 0.05

    def driver(self) -> SchedulerDriver:
        sweep = [(rows, 0, self.KNOWN_S) for rows in (1, 8)]
        return SchedulerDriver(policy=AdaptivePolicy(8, sweep))

    def try_one(self, driver: SchedulerDriver, duration_s: float) -> bool:
        """Send one request to the idle worker; returns whether it was let in."""
        driver.submit(deadline_s=driver.now + self.DEADLINE_S)
        if driver.waiting == []:
            return False
        driver.settle()
        driver.advance_to(driver.now + duration_s)
        driver.complete(driver.dispatched[-1].id)
        return True

    def test_what_is_confirmed_is_trusted_for_a_while(self) -> None:
        driver = self.driver()
        assert self.try_one(driver, self.KNOWN_S)
        assert not self.try_one(driver, self.KNOWN_S)
        driver.advance_to(driver.now + PROBE_S + 0.01)
        assert self.try_one(driver, self.KNOWN_S)
        assert not self.try_one(driver, self.KNOWN_S)

    def test_what_a_batch_contradicts_is_tried_again_at_once_until_it_is_learned(self) -> None:
        driver = self.driver()
        policy = driver.scheduler._policy
        assert isinstance(policy, AdaptivePolicy)
        for _ in range(40):
            assert self.try_one(driver, self.NOW_S)
        assert policy.cost.curve is not None
        assert policy.cost.curve.at(1, 0) == pytest.approx(self.NOW_S, rel=0.2)

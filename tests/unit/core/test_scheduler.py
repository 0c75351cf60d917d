"""The scheduler as a state machine: every event, and what it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.errors import Reason
from headrace_server.core.events import (
    BatchCompleted,
    BatchFailed,
    Drained,
    RequestCancelled,
    TimeAdvanced,
)
from headrace_server.core.fleet import MAX_STAGE_LEAD_S, STAGE_LEAD_SHARE
from headrace_server.core.policy import Decision, Opening, Refusal, StaticPolicy, StaticSettings
from headrace_server.core.queue import Queue, QueueLimits
from headrace_server.core.request import DispatchReason
from headrace_server.core.scheduler import MOST_REFUSALS
from headrace_server.core.watchdog import Watchdog
from scheduler_driver import SchedulerDriver, dispatches, rejections

Drive = Callable[..., SchedulerDriver]


def taking(base_s: float, row_s: float = 0.0) -> AdaptivePolicy:
    """A policy that knows how long batches take: so much, and so much per row."""
    return AdaptivePolicy(8, [(rows, 0, base_s + rows * row_s) for rows in (1, 2, 4, 8)])


def patient() -> Watchdog:
    """For tests of all other wake-ups: no batch ever counts as a hang."""
    return Watchdog(timeout_s=math.inf)


class TestForming:
    def test_a_lone_request_goes_at_once(self, drive: Drive) -> None:
        driver = drive(watchdog=patient())
        driver.submit(1)
        assert driver.scheduler.next_wakeup() == driver.now
        assert dispatches(driver.settle()) == [[1]]
        assert driver.dispatched[0].reason is DispatchReason.IMMEDIATE
        assert driver.scheduler.next_wakeup() is None

    def test_simultaneous_arrivals_ride_together(self, drive: Drive) -> None:
        driver = drive(workers=2)
        for request_id in (1, 2, 3):
            assert driver.submit(request_id) == [], "never dispatched by the submission itself"
        assert dispatches(driver.settle()) == [[1, 2, 3]]

    def test_more_than_a_batch_spreads_over_the_idle_workers(self, drive: Drive) -> None:
        driver = drive(workers=2, max_batch_size=4)
        for request_id in (1, 2, 3):
            driver.submit(request_id, rows=2)
        assert dispatches(driver.settle()) == [[1, 2], [3]]
        assert [batch.worker_id for batch in driver.dispatched] == [0, 1]
        assert [batch.rows for batch in driver.dispatched] == [4, 2]

    def test_requests_wait_for_the_first_worker(self, drive: Drive) -> None:
        driver = drive(workers=0)
        driver.submit(1)
        driver.submit(2)
        assert driver.settle() == []
        assert driver.scheduler.next_wakeup() is None
        assert dispatches(driver.add_worker(0)) == [[1, 2]]

    def test_batches_form_while_the_worker_is_busy(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        for request_id in (2, 3, 4):
            driver.submit(request_id)
        assert driver.settle() == []
        driver.now = 1.0
        assert dispatches(driver.complete(0)) == [[2, 3, 4]]

    def test_an_odd_shape_delays_nobody(self, drive: Drive) -> None:
        driver = drive(max_batch_size=4, max_delay_s=1.0)
        driver.submit(1, key="odd")
        driver.settle()
        driver.now = 0.1
        driver.submit(2, rows=4)
        assert dispatches(driver.settle()) == [[2]]
        assert driver.waiting == [1]
        driver.now = 0.2
        driver.complete(0)
        assert dispatches(driver.advance_to(1.0)) == [[1]]

    def test_nobody_waits_longer_than_the_queue_delay_for_company(self, drive: Drive) -> None:
        driver = drive(max_delay_s=0.5)
        driver.submit(1)
        assert driver.settle() == []
        assert driver.scheduler.next_wakeup() == 0.5
        driver.advance_to(0.3)
        driver.submit(2)
        assert driver.settle() == []
        assert dispatches(driver.advance_to(0.5)) == [[1, 2]]
        assert driver.dispatched[0].reason is DispatchReason.DELAY_EXPIRED
        assert driver.dispatched[0].dispatched_s == 0.5

    def test_urgent_requests_overtake(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        driver.submit(1)
        driver.settle()
        driver.submit(2, priority=2)
        driver.submit(3, priority=1)
        driver.settle()
        assert dispatches(driver.complete(0) + driver.complete(1)) == [[2]]
        assert [[r.id for r in batch.requests] for batch in driver.dispatched] == [[1], [3], [2]]


class TestStaging:
    def test_a_complete_batch_is_staged_behind_a_running_one(self, drive: Drive) -> None:
        driver = drive(max_batch_size=2)
        driver.submit(1, rows=2)
        driver.submit(2, rows=2)
        driver.submit(3, rows=2)
        assert dispatches(driver.settle()) == [[1], [2]]
        assert driver.running(0) == [0, 1]
        assert driver.waiting == [3], "no third batch on one worker"

    def test_an_incomplete_batch_stays_open_when_nothing_is_known(self, drive: Drive) -> None:
        driver = drive(watchdog=patient())
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert driver.settle() == []
        assert driver.scheduler.next_wakeup() is None

    def test_an_incomplete_batch_is_staged_shortly_before_the_expected_end(
        self, drive: Drive
    ) -> None:
        driver = drive(policy=taking(0.1))
        driver.submit(1)
        driver.settle()
        driver.advance_to(0.05)
        driver.submit(2)
        assert driver.settle() == []
        assert driver.scheduler.next_wakeup() == pytest.approx(0.1 - MAX_STAGE_LEAD_S)
        driver.advance_to(0.09)
        driver.submit(3)
        assert driver.settle() == []
        assert dispatches(driver.advance_to(0.099)) == [[2, 3]]
        assert driver.running(0) == [0, 1]
        assert driver.dispatched[1].dispatched_s == pytest.approx(0.1 - MAX_STAGE_LEAD_S)

    def test_a_short_batch_gets_its_successor_in_its_last_part_only(self, drive: Drive) -> None:
        driver = drive(policy=taking(0.01))
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        driver.settle()
        assert driver.scheduler.next_wakeup() == pytest.approx(0.01 * (1 - STAGE_LEAD_SHARE))

    def test_behind_a_batch_of_a_millisecond_nothing_is_staged_that_could_grow(
        self, drive: Drive
    ) -> None:
        driver = drive(policy=taking(0.001), watchdog=patient())
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert driver.settle() == []
        assert driver.scheduler.next_wakeup() is None
        driver.submit(3)
        assert dispatches(driver.complete(0)) == [[2, 3]]

    def test_requests_of_the_moment_of_a_completion_ride_in_the_next_batch(
        self, drive: Drive
    ) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert driver.handle(BatchCompleted(0)) == []
        driver.submit(3)
        assert dispatches(driver.settle()) == [[2, 3]]

    def test_a_batch_that_becomes_complete_is_staged_at_once(self, drive: Drive) -> None:
        driver = drive(max_batch_size=2)
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert driver.settle() == []
        driver.submit(3)
        assert dispatches(driver.settle()) == [[2, 3]]

    def test_a_batch_that_is_overdue_gets_a_successor_at_once(self, drive: Drive) -> None:
        driver = drive(policy=taking(0.1))
        driver.submit(1)
        driver.settle()
        driver.advance_to(9.0)
        driver.submit(2)
        assert dispatches(driver.settle()) == [[2]]

    def test_a_staged_batch_runs_from_the_end_of_the_one_before(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.advance_to(0.3)
        driver.complete(0)
        running, staged = driver.dispatched
        assert running.started_s == 0.0
        assert (staged.dispatched_s, staged.started_s) == (0.0, 0.3)

    def test_what_was_staged_is_expected_to_end_counted_from_its_own_start(
        self, drive: Drive
    ) -> None:
        driver = drive(policy=taking(0.1))
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        driver.advance_to(0.099)
        driver.advance_to(0.2)
        driver.complete(0)
        assert driver.dispatched[1].expected_s == pytest.approx(0.1)
        driver.submit(3)
        driver.settle()
        assert driver.scheduler.next_wakeup() == pytest.approx(0.3 - MAX_STAGE_LEAD_S)

    def test_the_next_batch_goes_to_the_worker_that_is_free_first(self, drive: Drive) -> None:
        driver = drive(workers=2, policy=taking(0.1, row_s=0.1))
        driver.submit(1, rows=8)
        driver.settle()
        driver.submit(2, rows=1)
        driver.settle()
        driver.submit(3, rows=8)
        driver.settle()
        assert [batch.worker_id for batch in driver.dispatched] == [0, 1, 1]


class TestEventsOfOneMoment:
    def test_the_next_requests_of_those_who_were_answered_ride_in_the_next_batch(
        self, drive: Drive
    ) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert driver.handle(BatchCompleted(0)) == []
        driver.submit(3)
        assert dispatches(driver.settle()) == [[2, 3]]

    def test_the_same_goes_for_those_whose_batch_failed(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert rejections(driver.handle(BatchFailed(0))) == [(1, Reason.MODEL_FAILED)]
        driver.submit(3)
        assert dispatches(driver.settle()) == [[2, 3]]

    def test_a_decision_that_is_due_is_not_put_off_by_a_request(self, drive: Drive) -> None:
        driver = drive(preferred_sizes=[2])
        for _ in range(3):
            driver.submit(rows=2)
        driver.settle()
        assert driver.handle(BatchCompleted(0)) == []
        driver.submit(4)
        assert dispatches(driver.settle()) == [[3]], "staged behind the second batch"

    def test_a_request_that_can_only_wait_wakes_nobody(self, drive: Drive) -> None:
        driver = drive(watchdog=patient())
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        assert driver.scheduler.next_wakeup() is None


class TestRefusal:
    def test_a_full_queue_refuses(self, drive: Drive) -> None:
        driver = drive(workers=0, limits=QueueLimits(max_requests=2))
        driver.submit(1)
        driver.submit(2)
        assert rejections(driver.submit(3)) == [(3, Reason.QUEUE_FULL)]
        driver.cancel(1)
        assert driver.submit(4) == []

    def test_a_full_level_refuses_only_its_own(self, drive: Drive) -> None:
        limits = QueueLimits(max_requests_by_level={2: 1})
        driver = drive(workers=0, limits=limits)
        driver.submit(1, priority=2)
        assert rejections(driver.submit(2, priority=2)) == [(2, Reason.QUEUE_FULL)]
        assert driver.submit(3, priority=1) == []

    @pytest.mark.parametrize("reason", [Reason.DEADLINE_EXCEEDED, Reason.QUEUE_TIMEOUT])
    def test_a_late_request_is_refused_with_its_own_reason(
        self, drive: Drive, reason: Reason
    ) -> None:
        driver = drive(workers=0)
        driver.submit(1, deadline_s=1.0, late_reason=reason)
        driver.submit(2)
        assert driver.scheduler.next_wakeup() == 1.0
        assert driver.advance_to(0.99) == []
        assert rejections(driver.advance_to(1.0)) == [(1, reason)]
        assert driver.waiting == [2]

    def test_a_request_that_is_late_already_is_refused_at_once(self, drive: Drive) -> None:
        driver = drive()
        driver.now = 5.0
        assert rejections(driver.submit(1, deadline_s=5.0)) == [(1, Reason.DEADLINE_EXCEEDED)]

    def test_a_late_request_is_never_dispatched(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.submit(2, deadline_s=1.0)
        driver.settle()
        driver.now = 1.0
        assert rejections(driver.complete(0)) == [(2, Reason.DEADLINE_EXCEEDED)]

    def test_a_deadline_does_not_touch_a_batch_in_flight(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1, deadline_s=1.0)
        driver.settle()
        assert driver.advance_to(2.0) == []
        driver.complete(0)
        assert driver.outcomes == {1: "completed"}

    def test_a_late_request_may_go_behind_all_others_of_its_level_instead(
        self, drive: Drive
    ) -> None:
        driver = drive(max_batch_size=1)
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.submit(3, deadline_s=1.0, delay=True)
        driver.submit(4)
        driver.submit(5, priority=9)
        assert driver.waiting == [3, 4, 5]
        assert driver.advance_to(1.0) == []
        assert driver.waiting == [4, 3, 5]
        assert dispatches(driver.complete(0)) == [[4]]
        assert dispatches(driver.complete(1)) == [[3]]

    def test_a_request_that_arrives_late_may_go_behind_all_others(self, drive: Drive) -> None:
        driver = drive(workers=0)
        driver.now = 1.0
        assert driver.submit(1, deadline_s=0.5, delay=True) == []
        driver.submit(2)
        driver.settle()
        assert driver.waiting == [2, 1]


class TestCancellation:
    def test_a_waiting_request_leaves(self, drive: Drive) -> None:
        driver = drive(workers=0)
        driver.submit(1)
        driver.submit(2)
        assert driver.cancel(1) == []
        assert dispatches(driver.add_worker(0)) == [[2]]

    def test_a_request_in_flight_runs_on_with_its_neighbours(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        assert driver.cancel(1) == []
        assert driver.requests[1].cancelled
        assert not driver.requests[2].cancelled
        driver.complete(0)
        assert driver.outcomes == {1: "completed", 2: "completed"}

    def test_it_may_make_a_batch_possible(self, drive: Drive) -> None:
        driver = drive(preferred_sizes=[4], max_delay_s=1.0)
        for request_id, rows in ((1, 3), (2, 3), (3, 1)):
            driver.submit(request_id, rows=rows)
        assert driver.settle() == []
        assert dispatches(driver.cancel(2)) == [[1, 3]]
        assert driver.dispatched[0].reason is DispatchReason.PREFERRED

    def test_however_many_go_at_one_moment_there_is_one_decision(self, drive: Drive) -> None:
        class Counting(StaticPolicy):
            decisions = 0

            def form(self, queue: Queue, opening: Opening) -> Decision:
                self.decisions += 1
                return super().form(queue, opening)

        policy = Counting(StaticSettings(64, preferred_sizes=(64,), max_delay_s=1.0))
        driver = drive(policy=policy)
        for request_id in range(60):
            driver.submit(request_id)
        driver.settle()
        before = policy.decisions
        for request_id in range(50):
            driver.handle(RequestCancelled(request_id))
        driver.settle()
        assert policy.decisions == before + 1
        driver.advance_to(1.0)
        assert driver.dispatched[0].rows == 10

    def test_a_request_that_is_gone_is_ignored(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.complete(0)
        assert driver.cancel(1) == []
        assert driver.cancel(77) == []


class TestWorkerLoss:
    def test_work_is_given_back_to_the_head_in_order_of_arrival(self, drive: Drive) -> None:
        driver = drive(max_batch_size=2)
        for request_id in range(1, 7):
            driver.submit(request_id)
        driver.settle()
        assert driver.running(0) == [0, 1]
        assert driver.lose_worker(0) == []
        assert driver.waiting == [1, 2, 3, 4, 5, 6]
        assert dispatches(driver.add_worker(1)) == [[1]], "alone: one of the two may be poison"
        assert dispatches(driver.complete(2)) == [[2], [3, 4]]
        assert dispatches(driver.complete(3)) == [[5, 6]]

    def test_another_worker_takes_over_at_once(self, drive: Drive) -> None:
        driver = drive(workers=2)
        driver.submit(1)
        driver.settle()
        assert dispatches(driver.lose_worker(0)) == [[1]]
        assert driver.dispatched[-1].worker_id == 1

    def test_a_second_loss_ends_a_request(self, drive: Drive) -> None:
        driver = drive(workers=2)
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.lose_worker(0)
        assert rejections(driver.lose_worker(1)) == [(1, Reason.WORKER_LOST)]
        assert driver.waiting == [2], "it rode alone and harmed nobody else"
        assert dispatches(driver.add_worker(0)) == [[2]]
        driver.complete(2)
        assert driver.outcomes == {1: Reason.WORKER_LOST, 2: "completed"}

    def test_a_staged_request_is_not_blamed(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.lose_worker(0)
        assert dispatches(driver.add_worker(0)) == [[1], [2]]
        assert rejections(driver.lose_worker(0)) == [(1, Reason.WORKER_LOST)]
        assert driver.waiting == [2]
        driver.add_worker(0)
        assert driver.lose_worker(0) == [], "2 was running for the first time"

    def test_a_cancelled_request_is_not_run_again(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.cancel(1)
        driver.lose_worker(0)
        assert driver.outcomes == {1: "cancelled"}
        assert dispatches(driver.add_worker(0)) == [[2]]

    def test_a_request_that_became_late_in_flight_is_refused(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1, deadline_s=1.0)
        driver.submit(2, deadline_s=3.0)
        driver.settle()
        driver.advance_to(2.0)
        assert rejections(driver.lose_worker(0)) == [(1, Reason.DEADLINE_EXCEEDED)]
        assert driver.scheduler.next_wakeup() == 3.0

    def test_a_deadline_that_was_watched_twice_refuses_once(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        driver.submit(1, deadline_s=2.0)
        driver.settle()
        driver.submit(2, deadline_s=1.0)
        driver.lose_worker(0)
        assert rejections(driver.advance_to(2.0)) == [
            (2, Reason.DEADLINE_EXCEEDED),
            (1, Reason.DEADLINE_EXCEEDED),
        ]

    def test_a_loss_does_not_count_against_the_bounds_of_the_queue(self, drive: Drive) -> None:
        driver = drive(limits=QueueLimits(max_requests=1))
        driver.submit(1)
        driver.settle()
        driver.submit(2)
        driver.lose_worker(0)
        assert driver.waiting == [1, 2]

    def test_an_unknown_worker_is_ignored(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        assert driver.lose_worker(7) == []
        driver.complete(0)
        assert driver.outcomes == {1: "completed"}

    def test_the_answer_of_a_lost_worker_is_ignored(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.lose_worker(0)
        assert driver.complete(0) == []
        assert driver.fail(0) == []
        assert driver.waiting == [1]


class TestBatchFailure:
    def test_its_requests_are_run_again_one_by_one_and_only_the_poisonous_fails(
        self, drive: Drive
    ) -> None:
        driver = drive()
        for request_id in (1, 2, 3):
            driver.submit(request_id)
        driver.settle()
        assert dispatches(driver.fail(0)) == [[1]]
        assert dispatches(driver.complete(1)) == [[2]]
        driver.fail(2)
        driver.complete(3)
        assert driver.outcomes == {1: "completed", 2: Reason.MODEL_FAILED, 3: "completed"}

    def test_a_cancelled_member_is_not_run_again(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.cancel(1)
        assert dispatches(driver.fail(0)) == [[2]]

    def test_the_worker_goes_on_with_what_is_staged(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        driver.submit(1)
        driver.submit(2)
        driver.settle()
        driver.advance_to(0.2)
        driver.fail(0)
        assert driver.dispatched[1].started_s == 0.2
        driver.complete(1)
        assert driver.outcomes == {1: Reason.MODEL_FAILED, 2: "completed"}

    def test_one_that_fails_while_it_is_staged_leaves_the_running_one_alone(
        self, drive: Drive
    ) -> None:
        driver = drive(max_batch_size=2)
        for request_id in (1, 2, 3, 4):
            driver.submit(request_id)
        driver.settle()
        assert driver.running(0) == [0, 1]
        driver.advance_to(0.1)
        driver.fail(1)
        assert driver.in_flight[0].started_s == 0.0
        assert driver.running(0) == [0]
        driver.advance_to(0.2)
        driver.complete(0)
        driver.complete(2)
        driver.complete(3)
        assert driver.outcomes == dict.fromkeys((1, 2, 3, 4), "completed")

    def test_nothing_is_learnt_from_it(self, drive: Drive) -> None:
        policy = AdaptivePolicy(8)
        driver = drive(policy=policy)
        driver.submit(1)
        driver.settle()
        driver.advance_to(0.2)
        driver.fail(0)
        assert policy.cost.curve is None
        driver.submit(2)
        driver.settle()
        driver.advance_to(0.5)
        driver.complete(1)
        assert policy.cost.curve is not None
        assert policy.cost.curve.at(1, 0) == pytest.approx(0.3)


class TestPreserveOrdering:
    def test_all_batches_in_flight_are_on_one_worker(self, drive: Drive) -> None:
        driver = drive(workers=2, max_batch_size=1, preserve_ordering=True)
        for request_id in (1, 2, 3):
            driver.submit(request_id)
        assert dispatches(driver.settle()) == [[1], [2]]
        assert driver.running(0) == [0, 1]
        assert driver.running(1) == []
        assert dispatches(driver.complete(0)) == [[3]]
        assert driver.running(0) == [1, 2]

    def test_another_worker_may_take_over_when_nothing_is_in_flight(self, drive: Drive) -> None:
        driver = drive(workers=2, preserve_ordering=True)
        for batch_id in (0, 1):
            driver.submit()
            driver.settle()
            driver.complete(batch_id)
        assert [batch.worker_id for batch in driver.dispatched] == [0, 1]


class TestEnding:
    def test_draining_refuses_new_requests_and_finishes_the_admitted(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        for request_id in (1, 2, 3):
            driver.submit(request_id)
        driver.settle()
        assert driver.drain() == []
        assert rejections(driver.submit(4)) == [(4, Reason.STOPPING)]
        driver.complete(0)
        driver.complete(1)
        assert driver.complete(2) == [Drained()]
        assert driver.drained == 1

    def test_an_idle_scheduler_is_drained_at_once(self, drive: Drive) -> None:
        driver = drive()
        assert driver.drain() == [Drained()]
        assert driver.drain() == [], "said once"

    def test_cancelling_the_last_request_ends_a_drain(self, drive: Drive) -> None:
        driver = drive(workers=0)
        driver.submit(1)
        driver.drain()
        assert driver.cancel(1) == [Drained()]

    def test_a_drain_waits_for_a_worker_to_come_back(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.drain()
        assert driver.lose_worker(0) == []
        assert dispatches(driver.add_worker(0)) == [[1]]
        assert driver.complete(1) == [Drained()]

    def test_abandoning_refuses_everything_with_the_reason(self, drive: Drive) -> None:
        driver = drive(max_batch_size=1)
        for request_id in (1, 2, 3):
            driver.submit(request_id)
        driver.settle()
        actions = driver.abandon(Reason.MODEL_UNAVAILABLE)
        assert actions.pop() == Drained()
        assert rejections(actions) == [(i, Reason.MODEL_UNAVAILABLE) for i in (1, 2, 3)]
        assert driver.scheduler.next_wakeup() is None

    def test_nothing_is_admitted_once_abandoned(self, drive: Drive) -> None:
        driver = drive()
        driver.abandon(Reason.MODEL_UNAVAILABLE)
        assert rejections(driver.submit(1)) == [(1, Reason.MODEL_UNAVAILABLE)]

    def test_news_after_abandoning_is_ignored(self, drive: Drive) -> None:
        driver = drive()
        driver.submit(1)
        driver.settle()
        driver.abandon()
        assert driver.complete(0) == []
        assert driver.lose_worker(0) == []
        assert driver.add_worker(0) == []
        assert driver.outcomes == {1: Reason.STOPPING}


class TestNextWakeup:
    def test_an_idle_scheduler_sleeps(self, drive: Drive) -> None:
        assert drive().scheduler.next_wakeup() is None

    def test_the_earliest_of_deadline_and_delay_counts(self, drive: Drive) -> None:
        driver = drive(max_delay_s=0.5)
        driver.submit(1, deadline_s=2.0)
        driver.settle()
        assert driver.scheduler.next_wakeup() == 0.5
        driver.submit(2, deadline_s=0.3)
        driver.settle()
        assert driver.scheduler.next_wakeup() == 0.3

    def test_a_wakeup_that_comes_too_early_just_asks_again(self, drive: Drive) -> None:
        driver = drive(max_delay_s=0.5)
        driver.submit(1)
        driver.settle()
        driver.advance_to(0.4)
        assert driver.settle() == []
        assert driver.scheduler.next_wakeup() == 0.5


class TestRefusals:
    def test_no_more_than_a_few_are_decided_at_once(self, drive: Drive) -> None:
        class Refusing(StaticPolicy):
            def form(self, queue: Queue, opening: Opening) -> Decision:
                return Refusal(queue.most_urgent(), Reason.OVERLOADED)

        driver = drive(policy=Refusing(StaticSettings(8)))
        for request_id in range(MOST_REFUSALS + 3):
            driver.submit(request_id)
        assert len(driver.handle(TimeAdvanced())) == MOST_REFUSALS
        assert driver.scheduler.next_wakeup() == driver.now, "the others are next"
        assert len(driver.settle()) == 3

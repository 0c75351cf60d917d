"""When a batch that is not answered counts as a hang, and when it is only slow."""

from __future__ import annotations

import pytest

from headrace_server.core.events import Dispatch, Restart, TimeAdvanced
from headrace_server.core.request import Batch, DispatchReason
from headrace_server.core.watchdog import (
    FACTOR,
    LATE_S,
    LEAST_S,
    MOST_DOUBLINGS,
    TRUSTED,
    UNKNOWN_S,
    Watchdog,
)
from scheduler_driver import SchedulerDriver, make_request

SWEEP = [(1, 8, 0.01), (4, 8, 0.02), (1, 64, 0.05)]


def batch_of(rows: int = 1, length: int = 0, nbytes: int = 4) -> Batch:
    request = make_request(1, rows=rows, length=length, nbytes=nbytes)
    return Batch(0, 0, [request], rows, DispatchReason.IMMEDIATE, dispatched_s=0.0)


def test_a_short_batch_gets_the_least_patience() -> None:
    assert Watchdog(SWEEP).patience_s(batch_of(4, 64), 0.05) == LEAST_S


def test_a_long_batch_gets_a_multiple_of_what_it_should_take_at_most() -> None:
    assert Watchdog(SWEEP).patience_s(batch_of(), 3.0) == 3.0 * FACTOR


@pytest.mark.parametrize("batch", [batch_of(5), batch_of(1, 65)])
def test_what_is_larger_than_anything_known_gets_the_patience_for_the_unknown(
    batch: Batch,
) -> None:
    watchdog = Watchdog(SWEEP)
    assert watchdog.patience_s(batch, 0.05) == UNKNOWN_S
    assert watchdog.patience_s(batch, UNKNOWN_S) == FACTOR * UNKNOWN_S
    watchdog.answered(batch)
    assert watchdog.patience_s(batch, 0.05) == LEAST_S


def test_without_a_sweep_several_answers_make_what_is_no_larger_known() -> None:
    watchdog = Watchdog()
    for _ in range(TRUSTED):
        assert watchdog.patience_s(batch_of(nbytes=9), 0.05) == UNKNOWN_S
        watchdog.answered(batch_of(nbytes=9))
    assert watchdog.patience_s(batch_of(nbytes=9), 0.05) == LEAST_S
    assert watchdog.patience_s(batch_of(nbytes=10), 0.05) == UNKNOWN_S
    assert watchdog.patience_s(batch_of(nbytes=9), None) == UNKNOWN_S


def test_patience_doubles_with_each_alarm_until_a_batch_of_as_many_rows_is_answered() -> None:
    watchdog = Watchdog(SWEEP)
    for alarms in range(MOST_DOUBLINGS + 3):
        expected_s = LEAST_S * 2 ** min(alarms, MOST_DOUBLINGS)
        assert watchdog.patience_s(batch_of(2), 0.05) == expected_s
        watchdog.hung(batch_of(2))
    watchdog.answered(batch_of(1))
    assert watchdog.patience_s(batch_of(1), 0.05) == LEAST_S
    assert watchdog.patience_s(batch_of(2), 0.05) > LEAST_S
    watchdog.answered(batch_of(2))
    assert watchdog.patience_s(batch_of(2), 0.05) == LEAST_S


def test_a_timeout_of_ones_own_takes_the_place_of_it_all() -> None:
    watchdog = Watchdog(SWEEP, timeout_s=0.5)
    watchdog.hung(batch_of())
    assert watchdog.patience_s(batch_of(), 3.0) == 0.5
    assert watchdog.patience_s(batch_of(99), None) == 0.5


class TestScheduler:
    """What the scheduler does with it."""

    @staticmethod
    def running() -> SchedulerDriver:
        driver = SchedulerDriver(workers=2, watchdog=Watchdog(timeout_s=3.0))
        driver.submit(1)
        driver.settle()
        return driver

    def test_it_wakes_when_a_batch_will_count_as_a_hang_and_not_before(self) -> None:
        driver = self.running()
        assert driver.scheduler.next_wakeup() == 3.0
        assert driver.advance_to(2.9) == []
        restart, retry = driver.advance_to(3.0)
        assert restart == Restart(0)
        assert isinstance(retry, Dispatch)
        assert retry.batch.worker_id == 1

    def test_an_answered_batch_is_watched_no_more(self) -> None:
        driver = self.running()
        driver.complete(0)
        assert driver.scheduler.next_wakeup() is None

    def test_the_loss_of_a_worker_that_was_ended_changes_nothing(self) -> None:
        driver = self.running()
        driver.advance_to(3.0)
        assert driver.lose_worker(0) == []
        driver.complete(1)
        assert driver.outcomes == {1: "completed"}

    def test_a_wakeup_that_comes_late_convicts_nobody(self) -> None:
        driver = self.running()
        driver.now = 3.0 + LATE_S + 0.1
        assert driver.handle(TimeAdvanced()) == []
        assert driver.scheduler.next_wakeup() == driver.now + LEAST_S
        assert driver.advance_to(driver.now + LEAST_S)[0] == Restart(0)

    def test_time_counts_from_when_a_batch_runs_not_from_when_it_was_staged(self) -> None:
        driver = SchedulerDriver(max_batch_size=1, watchdog=Watchdog(timeout_s=3.0))
        for request_id in (1, 2):
            driver.submit(request_id)
        driver.settle()
        driver.advance_to(2.0)
        driver.complete(0)
        assert driver.scheduler.next_wakeup() == 5.0

"""When a model without a living worker stops to let requests wait, and when it starts again."""

from __future__ import annotations

import math

from headrace_server.core.errors import Reason
from headrace_server.core.outage import HEALTHY_S, LEAST_S, LOADS, Outage
from scheduler_driver import SchedulerDriver, rejections


def test_there_is_no_outage_before_the_first_loss() -> None:
    assert Outage().due_s == math.inf


def test_a_model_that_loads_slowly_gets_more_time() -> None:
    assert Outage(load_s=1.0).patience_s == LEAST_S
    assert Outage(load_s=60.0).patience_s == 60.0 * LOADS


def test_losses_without_an_answer_in_between_are_one_series() -> None:
    outage = Outage()
    outage.last_worker_lost(10.0)
    outage.first_worker_ready(12.0)
    assert outage.due_s == math.inf
    outage.last_worker_lost(13.0)
    assert outage.due_s == 10.0 + LEAST_S


def test_an_answer_ends_the_series() -> None:
    outage = Outage()
    outage.last_worker_lost(10.0)
    outage.first_worker_ready(12.0)
    outage.answered()
    outage.last_worker_lost(13.0)
    assert outage.due_s == 13.0 + LEAST_S


def test_a_worker_that_lived_for_long_ends_the_series_unasked() -> None:
    outage = Outage()
    outage.last_worker_lost(10.0)
    outage.first_worker_ready(12.0)
    outage.last_worker_lost(12.0 + HEALTHY_S)
    assert outage.due_s == 12.0 + HEALTHY_S + LEAST_S


class TestScheduler:
    """What the scheduler does with it."""

    def test_whoever_waits_is_refused_once_it_has_lasted_too_long(self) -> None:
        driver = SchedulerDriver()
        driver.lose_worker(0)
        driver.submit(1)
        assert driver.advance_to(LEAST_S - 1) == []
        assert rejections(driver.advance_to(LEAST_S)) == [(1, Reason.MODEL_UNAVAILABLE)]
        assert rejections(driver.submit(2)) == [(2, Reason.MODEL_UNAVAILABLE)]
        assert driver.scheduler.next_wakeup() is None

    def test_nobody_is_refused_while_another_worker_lives(self) -> None:
        driver = SchedulerDriver(workers=2)
        driver.lose_worker(0)
        driver.now = 2 * LEAST_S
        driver.submit(1)
        driver.settle()
        driver.complete(0)
        assert driver.outcomes == {1: "completed"}

    def test_a_worker_that_comes_is_given_work_again(self) -> None:
        driver = SchedulerDriver()
        driver.lose_worker(0)
        driver.advance_to(2 * LEAST_S)
        driver.add_worker(0)
        driver.submit(1)
        driver.settle()
        driver.complete(0)
        assert driver.outcomes == {1: "completed"}

    def test_failed_batches_are_answers_too(self) -> None:
        driver = SchedulerDriver()
        driver.lose_worker(0)
        driver.add_worker(0)
        driver.submit(1)
        driver.settle()
        driver.fail(0)
        driver.now = LEAST_S - 1
        driver.lose_worker(0)
        driver.submit(2)
        assert driver.advance_to(LEAST_S) == []

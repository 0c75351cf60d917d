"""Batches that find no memory: their requests ride in smaller ones, whoever is too large fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.errors import Reason
from headrace_server.core.memory import RETRY_S
from headrace_server.core.policy import BatchPolicy, StaticPolicy, StaticSettings
from headrace_server.core.request import Batch
from scheduler_driver import SchedulerDriver, dispatches

Drive = Callable[..., SchedulerDriver]


@pytest.fixture(params=["learned", "static"])
def policy(request: pytest.FixtureRequest) -> BatchPolicy:
    if request.param == "static":
        return StaticPolicy(StaticSettings(8))
    return AdaptivePolicy(8, [(rows, 0, 0.010) for rows in (1, 2, 4, 8)])


def run_all(driver: SchedulerDriver, fits: Callable[[Batch], bool]) -> list[int]:
    """Answer every batch, or have it find no memory; returns the rows of all, in order."""
    rows = []
    driver.settle()
    while driver.in_flight:
        batch_id, batch = next(iter(driver.in_flight.items()))
        rows.append(batch.rows)
        driver.now += 0.010
        if fits(batch):
            driver.complete(batch_id)
        else:
            driver.run_out_of_memory(batch_id)
    return rows


def submit(driver: SchedulerDriver, *request_ids: int) -> None:
    for request_id in request_ids:
        driver.submit(request_id, nbytes=100)


def test_requests_ride_again_in_smaller_batches(drive: Drive, policy: BatchPolicy) -> None:
    driver = drive(policy=policy)
    submit(driver, *range(8))
    assert run_all(driver, lambda batch: batch.rows <= 2) == [8, 4, 2, 2, 2, 2]
    assert set(driver.outcomes.values()) == {"completed"}
    submit(driver, *range(8, 16))
    assert run_all(driver, lambda batch: batch.rows <= 2) == [2, 2, 2, 2], "it is remembered"


def test_larger_batches_are_tried_again_later(drive: Drive, policy: BatchPolicy) -> None:
    driver = drive(policy=policy)
    submit(driver, *range(8))
    run_all(driver, lambda batch: batch.rows <= 4)
    driver.advance_to(driver.now + RETRY_S)
    submit(driver, *range(8, 16))
    run_all(driver, lambda batch: True)
    submit(driver, *range(16, 24))
    assert run_all(driver, lambda batch: True) == [8]


def test_whoever_finds_no_memory_alone_fails_and_makes_nobody_ride_apart(
    drive: Drive, policy: BatchPolicy
) -> None:
    driver = drive(policy=policy)
    submit(driver, *range(8))
    run_all(driver, lambda batch: all(request.id != 5 for request in batch.requests))
    assert driver.outcomes.pop(5) is Reason.OUT_OF_MEMORY
    assert set(driver.outcomes.values()) == {"completed"}
    driver.outcomes[5] = Reason.OUT_OF_MEMORY
    submit(driver, *range(8, 16))
    assert run_all(driver, lambda batch: True) == [8]


def test_a_cancelled_member_does_not_ride_again(drive: Drive, policy: BatchPolicy) -> None:
    driver = drive(policy=policy)
    submit(driver, 0, 1, 2)
    driver.settle()
    driver.cancel(1)
    assert dispatches(driver.run_out_of_memory(0)) == [[0]]


def test_requests_without_bytes_are_tried_alone(drive: Drive, policy: BatchPolicy) -> None:
    driver = drive(policy=policy)
    for request_id in range(4):
        driver.submit(request_id, nbytes=0)
    assert run_all(driver, lambda batch: batch.requests[0].id == 3) == [4, 1, 1, 1, 1]
    assert Counter(driver.outcomes.values()) == {Reason.OUT_OF_MEMORY: 3, "completed": 1}

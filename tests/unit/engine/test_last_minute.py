"""What the last minute is remembered as: exact counts, fair samples, bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from asking import submit
from engine_stage import Stage, call_of, serve
from headrace_server.core.errors import Reason, ServingError
from headrace_server.core.request import Batch, DispatchReason
from headrace_server.engine.last_minute import (
    QUEUED,
    SAMPLES,
    SECONDS,
    Activity,
    LastMinute,
    Quantiles,
)
from headrace_server.workers.executor import BatchTiming
from scheduler_driver import make_request

TIMING = BatchTiming(input_ns=0, infer_ns=2_000_000, output_ns=0)


@dataclass
class Told:
    """A last minute that tests tell themselves what happened, and when."""

    stage: Stage
    minute: LastMinute
    now: float = 1_000.0

    def batch(
        self,
        *lengths: int,
        reason: DispatchReason = DispatchReason.IMMEDIATE,
        waited_s: float = 0.0,
        took_s: float = 0.01,
        expected_s: float | None = None,
    ) -> None:
        """A batch of requests of one row each was just answered."""
        started_s = self.now - took_s
        requests = [
            make_request(i, at=started_s - waited_s, length=length)
            for i, length in enumerate(lengths)
        ]
        batch = Batch(0, 0, requests, len(requests), reason, started_s, started_s, expected_s)
        batch.ran_s = took_s
        self.minute.batch_completed(self.stage.deployment, batch, TIMING, self.now)

    @property
    def activity(self) -> Activity:
        return self.minute.of(self.stage.deployment, self.now)

    @property
    def lengths(self) -> list[int]:
        return list(self.minute.typical_lengths(self.stage.deployment))


@pytest.fixture
async def told() -> Told:
    return Told(await serve(), LastMinute())


def test_nothing_happened_in_a_quiet_minute(told: Told) -> None:
    activity = told.activity
    assert (activity.batches, activity.requests, activity.cancelled) == (0, 0, 0)
    assert (activity.queue_s, activity.compute_s, activity.prediction_ratio) == (None, None, None)
    assert told.lengths == []


def test_batches_requests_rows_and_reasons_are_counted(told: Told) -> None:
    told.batch(0, 0, 0, reason=DispatchReason.BEST_SIZE)
    told.batch(0)
    told.now += 1.0
    told.batch(0)
    activity = told.activity
    assert (activity.batches, activity.requests) == (3, 5)
    assert activity.batch_rows == {3: 1, 1: 2}
    assert activity.dispatches == {"best_size": 1, "immediate": 2}


def test_what_is_older_than_a_minute_is_left_out_but_its_lengths_are_known(told: Told) -> None:
    told.batch(7)
    told.now += SECONDS - 1
    told.batch(9)
    assert told.activity.batches == 2
    told.now += 1.0
    assert told.activity.batches == 1
    told.now += 10 * SECONDS
    assert told.activity.batches == 0
    assert told.lengths == [7, 9]


def test_times_are_those_of_the_batches(told: Told) -> None:
    told.batch(0, 0, waited_s=0.5, took_s=0.02, expected_s=0.01)
    activity = told.activity
    assert activity.queue_s == pytest.approx(Quantiles(0.5, 0.5, 0.5, 0.5))
    assert activity.compute_s == pytest.approx(Quantiles(0.002, 0.002, 0.002, 0.002))
    assert activity.prediction_ratio == pytest.approx(Quantiles(0.5, 0.5, 0.5, 0.5))
    (sample,) = activity.samples
    assert (sample.rows, sample.duration_s) == (2, pytest.approx(0.02))


def test_quantiles_are_values_that_really_were(told: Told) -> None:
    for i in range(1, 21):
        told.now += 1.0
        told.batch(0, took_s=1.0, expected_s=float(i))
    assert told.activity.prediction_ratio == pytest.approx(Quantiles(1, 10, 19, 20))


def test_where_nothing_was_predicted_there_is_no_ratio(told: Told) -> None:
    told.batch(0)
    assert told.activity.prediction_ratio is None


def test_padding_is_a_share_of_all_elements(told: Told) -> None:
    told.batch(10, 5)  # 5 of 20 elements
    told.batch(60)
    assert told.activity.padding_share == pytest.approx(5 / 80)


def test_typical_lengths_are_a_short_a_usual_and_a_long_one(told: Told) -> None:
    for length in range(100):
        told.now += 0.1
        told.batch(length)
    lengths = told.lengths
    assert lengths == sorted(set(lengths))
    assert len(lengths) == 3
    assert lengths[0] < 10
    assert 40 < lengths[1] < 60
    assert lengths[-1] > 90


def test_a_busy_second_weighs_as_much_as_it_did(told: Told) -> None:
    for _ in range(1_000):
        told.batch(0, took_s=1.0, expected_s=1.0)
    told.now += 1.0
    for _ in range(SAMPLES):
        told.batch(0, took_s=1.0, expected_s=2.0)
    ratio = told.activity.prediction_ratio
    assert ratio is not None
    assert (ratio.p50, ratio.p95, ratio.p99) == pytest.approx((1.0, 1.0, 2.0))


def test_samples_are_spread_over_their_second(told: Told) -> None:
    for i in range(1_000):
        told.batch(i)
    lengths = sorted(sample.length for sample in told.activity.samples)
    assert len(lengths) == SAMPLES
    assert lengths[0] < 200
    assert lengths[-1] > 800


def test_memory_is_bounded_however_much_happens(told: Told) -> None:
    for _ in range(2 * SECONDS):
        told.now += 1.0
        for _ in range(2 * SAMPLES):
            told.batch(*range(5 * QUEUED - 1))
    activity = told.activity
    assert activity.batches == 2 * SAMPLES * SECONDS
    assert len(activity.samples) == SAMPLES * SECONDS
    assert max(len(sample.queue_s) for sample in activity.samples) == QUEUED


async def test_refusals_failures_and_cancellations_are_counted_by_reason() -> None:
    stage = await serve()
    failed = stage.submit(b"aa")
    refused = stage.submit(b"bb", remaining_s=0.0)
    request, _ = submit(stage.deployment, call_of(b"cc"))
    stage.deployment.cancel(request)
    stage.workers.fail(0)
    for future in (failed, refused):
        with pytest.raises(ServingError):
            await future
    activity = stage.last_minute.of(stage.deployment, stage.clock.now())
    assert activity.refusals == {
        Reason.DEADLINE_EXCEEDED.value: 1,
        Reason.MODEL_FAILED.value: 1,
    }
    assert (activity.cancelled, activity.batches) == (1, 0)


def test_nothing_is_kept_of_what_has_ended(told: Told) -> None:
    told.batch(3)
    told.minute.deployment_removed(told.stage.deployment)
    assert (told.activity.batches, told.lengths) == (0, [])

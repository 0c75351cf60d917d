"""What the statistics RPC reports, counted from observed batches."""

from __future__ import annotations

import pytest

from asking import submit
from engine_stage import call_of, serve
from headrace_server.core.errors import ServingError


async def test_nothing_is_counted_before_the_first_call() -> None:
    stage = await serve()
    counts = stage.statistics.of(stage.deployment)
    assert (counts.inference_count, counts.execution_count, counts.last_inference_ms) == (0, 0, 0)
    assert counts.batches == {}


async def test_rows_requests_and_batches_are_counted_apart() -> None:
    stage = await serve()
    for rows in ([b"aa"] * 3, [b"bb"] * 2):
        submit(stage.deployment, call_of(*rows))
    stage.clock.advance()
    stage.clock.advance(0.25)
    stage.workers.complete(0)
    stage.clock.advance()
    counts = stage.statistics.of(stage.deployment)
    assert counts.inference_count == 5
    assert counts.execution_count == 1
    assert counts.last_inference_ms == 1_000_000
    assert (counts.success.count, counts.success.ns) == (2, 2 * 250_000_000)
    assert (counts.queue.count, counts.queue.ns) == (2, 0)


async def test_each_request_is_charged_with_its_whole_batch() -> None:
    stage = await serve()
    for _ in range(2):
        submit(stage.deployment, call_of(b"aa"))
    stage.clock.advance()
    stage.workers.complete(0)
    stage.clock.advance()
    counts = stage.statistics.of(stage.deployment)
    assert (counts.compute_input.count, counts.compute_input.ns) == (2, 2_000)
    assert (counts.compute_infer.count, counts.compute_infer.ns) == (2, 40_000)
    assert (counts.compute_output.count, counts.compute_output.ns) == (2, 600)
    size = counts.batches[2]
    assert (size.compute_input.count, size.compute_input.ns) == (1, 1_000)
    assert (size.compute_infer.count, size.compute_infer.ns) == (1, 20_000)
    assert (size.compute_output.count, size.compute_output.ns) == (1, 300)


async def test_time_in_the_queue_is_counted() -> None:
    stage = await serve(max_queue_delay_s=0.5)
    stage.submit(b"aa")
    stage.clock.advance(0.5)
    stage.clock.advance(0.1)
    stage.workers.complete(0)
    stage.clock.advance()
    counts = stage.statistics.of(stage.deployment)
    assert counts.queue.ns == pytest.approx(500_000_000)
    assert counts.success.ns == pytest.approx(600_000_000)


async def test_refused_and_failed_calls_count_as_failures() -> None:
    stage = await serve()
    refused = stage.submit(b"aa", remaining_s=0.0)
    failed = stage.submit(b"bb")
    stage.clock.advance(0.25)
    stage.workers.fail(0)
    for future in (refused, failed):
        with pytest.raises(ServingError):
            await future
    counts = stage.statistics.of(stage.deployment)
    assert (counts.fail.count, counts.fail.ns) == (2, 250_000_000)
    assert counts.success.count == 0


async def test_who_waits_is_told_before_anything_is_counted() -> None:
    stage = await serve()
    answer = stage.submit(b"aa")
    stage.workers.complete(0)
    assert answer.done()
    assert stage.statistics.of(stage.deployment).execution_count == 0
    stage.clock.advance()
    assert stage.statistics.of(stage.deployment).execution_count == 1


async def test_loads_of_one_model_are_counted_apart() -> None:
    stage, again = await serve(), await serve()
    stage.submit(b"aa")
    stage.workers.complete(0)
    stage.clock.advance()
    assert stage.statistics.of(stage.deployment).execution_count == 1
    assert stage.statistics.of(again.deployment).execution_count == 0


async def test_nothing_is_kept_of_what_has_ended() -> None:
    stage = await serve()
    stage.submit(b"aa")
    stage.workers.complete(0)
    stage.clock.advance()
    await stage.deployment.stop()
    assert stage.statistics.of(stage.deployment).execution_count == 0

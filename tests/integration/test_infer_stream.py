"""ModelStreamInfer over a real channel, its batches completed by hand: order, errors, bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from headrace.errors import STATUS_TRAILER, unpack_status
from headrace.multiplexing import (
    MAX_BUNDLE,
    MAX_IN_FLIGHT,
    MAX_MESSAGE_BYTES,
    bundle_of_requests,
    unbundle,
)
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.transport.infer_stream import DEFAULT_LIMITS, StreamLimits
from stream_stage import Stage, request, until

UNORDERED = (("headrace_unordered", "true"),)
BUNDLES = (*UNORDERED, ("headrace_bundles", "true"))
LIMITS = StreamLimits(max_requests=4, max_bytes=1_000)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(LIMITS)
    await stage.start()
    yield stage
    await stage.stop()


def cancellation(request_id: str) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    message.parameters["headrace_cancel"].string_param = request_id
    return message


def check_answer(answer: pb.ModelStreamInferResponse, value: int) -> None:
    assert answer.error_message == ""
    response = answer.infer_response
    assert (response.model_name, response.model_version, response.id) == (
        "model",
        "1",
        f"id {value}",
    )
    assert list(response.raw_output_contents) == [bytes([value] * 2)]
    assert response.parameters["triton_final_response"].bool_param


async def test_answers_come_in_the_order_of_the_requests(stage: Stage) -> None:
    stream = stage.stream()
    for value in (1, 2, 3):
        await stream.write(request(value))
    await stage.taken(3)
    for value in (3, 2, 1):
        stage.complete(value)
    for value in (1, 2, 3):
        check_answer(await stream.read(), value)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_answers_come_as_they_are_ready_to_who_asks_for_that(stage: Stage) -> None:
    stream = stage.stream(UNORDERED)
    for value in (1, 2, 3):
        await stream.write(request(value))
    await stage.taken(3)
    for value in (2, 3, 1):
        stage.complete(value)
        check_answer(await stream.read(), value)


async def test_error_names_its_request_and_keeps_the_stream_open_in_its_turn(
    stage: Stage,
) -> None:
    stream = stage.stream()
    await stream.write(request(1))
    await stream.write(request(2, model="nobody"))
    await stream.write(request(3))
    await stage.taken(2)
    stage.complete(3)
    stage.complete(1)
    check_answer(await stream.read(), 1)
    error = await stream.read()
    assert error.error_message == "Request for unknown model: 'nobody' is not found"
    assert error.infer_response.id == "id 2"
    parameters = error.infer_response.parameters
    assert parameters["headrace_code"].int64_param == grpc.StatusCode.NOT_FOUND.value[0]
    assert parameters["headrace_reason"].string_param == "unknown_model"
    assert "headrace_retry_after_us" not in parameters
    check_answer(await stream.read(), 3)


async def test_failed_batch_fails_its_own_request_alone(stage: Stage) -> None:
    stream = stage.stream(UNORDERED)
    await stream.write(request(1))
    await stream.write(request(2))
    await stage.taken(2)
    stage.fail(1)
    error = await stream.read()
    assert error.infer_response.id == "id 1"
    assert error.error_message == "model 'model' failed to run this request"
    stage.complete(2)
    check_answer(await stream.read(), 2)


async def test_error_ends_the_stream_with_a_status_where_asked_for(stage: Stage) -> None:
    stream = stage.stream((("triton_grpc_error", "true"),))
    await stream.write(request(1))
    await stream.write(request(2, model="nobody"))
    await stream.write(request(3))
    await stage.taken(2)
    stage.complete(1)
    check_answer(await stream.read(), 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Request for unknown model: 'nobody' is not found"
    trailer = next(
        value for key, value in caught.value.trailing_metadata() if key == STATUS_TRAILER
    )
    assert unpack_status(trailer).reason == "unknown_model"
    await until(lambda: stage.cancelled() == 1)  # request 3 was taken back


async def test_empty_final_response_is_not_needed_where_the_answer_is_final(stage: Stage) -> None:
    stream = stage.stream()
    message = request(1)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    await stream.write(message)
    await stage.taken(1)
    stage.complete(1)
    check_answer(await stream.read(), 1)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_cancelled_request_is_answered_so_and_touches_no_other(stage: Stage) -> None:
    stream = stage.stream(UNORDERED)
    for value in (1, 2, 3):
        await stream.write(request(value))
    await stage.taken(3)
    await stream.write(cancellation("id 2"))
    error = await stream.read()
    assert error.infer_response.id == "id 2"
    assert error.infer_response.parameters["headrace_reason"].string_param == "cancelled"
    assert stage.cancelled() == 1
    await stream.write(cancellation("id 2"))  # of what is over: nothing happens
    for value in (3, 2, 1):
        stage.complete(value)
    check_answer(await stream.read(), 3)
    check_answer(await stream.read(), 1)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_caller_that_vanishes_takes_its_own_requests_back(stage: Stage) -> None:
    gone, stays = stage.stream(), stage.stream()
    await gone.write(request(1))
    await gone.write(request(2))
    await stays.write(request(3))
    await stage.taken(3)
    gone.cancel()
    await until(lambda: stage.cancelled() == 2)
    for value in (1, 2, 3):
        stage.complete(value)
    check_answer(await stays.read(), 3)
    assert stage.cancelled() == 2


async def test_stream_with_too_many_requests_is_not_read_until_one_is_answered(
    stage: Stage,
) -> None:
    stream = stage.stream(UNORDERED)
    for value in range(1, 7):
        await stream.write(request(value))
    await stage.taken(LIMITS.max_requests)
    other = stage.stream()
    await other.write(request(9))
    await stage.taken(LIMITS.max_requests + 1)  # others are read; what came before would be too
    assert len(stage.workers.batches) == LIMITS.max_requests + 1
    stage.complete(1)
    check_answer(await stream.read(), 1)
    await stage.taken(LIMITS.max_requests + 2)
    for value in (2, 3, 4, 5):
        stage.complete(value)
        check_answer(await stream.read(), value)
    await stage.taken(LIMITS.max_requests + 3)
    stage.complete(6)
    check_answer(await stream.read(), 6)


async def test_stream_with_too_many_bytes_is_not_read_until_they_are_answered(
    stage: Stage,
) -> None:
    stream = stage.stream()
    for value in (1, 2, 3):
        await stream.write(request(value, rows=LIMITS.max_bytes // 4))
    await stage.taken(2)
    other = stage.stream()
    await other.write(request(9))
    await stage.taken(3)
    assert stage.held_values() == {1, 2, 9}
    stage.complete(1)
    assert (await stream.read()).infer_response.id == "id 1"
    await stage.taken(4)
    assert stage.held_values() == {2, 3, 9}


async def test_stopping_server_answers_what_was_admitted_and_ends_the_stream(
    stage: Stage,
) -> None:
    stream = stage.stream()
    await stream.write(request(1))
    await stage.taken(1)
    draining = asyncio.create_task(stage.engine.drain(10))
    await until(lambda: stage.engine.stopping)
    await stream.write(request(2))
    stage.complete(1)
    check_answer(await stream.read(), 1)
    refused = await stream.read()
    assert refused.error_message == "Server is stopping, scheduler for model is stopping"
    assert refused.infer_response.parameters["headrace_retry_after_us"].int64_param == 1_000_000
    assert await draining
    started = time.monotonic()
    await stage.server.stop(10)
    assert time.monotonic() - started < 5, "an idle stream must not be waited for"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Server is stopping" in (caught.value.details() or "")


async def test_time_that_remains_is_the_deadline_of_one_request(stage: Stage) -> None:
    stream = stage.stream(UNORDERED)
    hurried = request(1)
    hurried.parameters["headrace_remaining_us"].int64_param = 0
    await stream.write(hurried)
    await stream.write(request(2))
    error = await stream.read()
    assert error.infer_response.id == "id 1"
    assert error.infer_response.parameters["headrace_reason"].string_param == "deadline_exceeded"
    stage.complete(2)
    check_answer(await stream.read(), 2)


async def test_bundle_is_many_requests_and_many_answers_in_one_message(stage: Stage) -> None:
    stream = stage.stream(BUNDLES)
    bundle = bundle_of_requests(
        [
            *(request(value).SerializeToString() for value in (1, 2, 3)),
            request(4, model="nobody").SerializeToString(),
        ]
    )
    await stream.write(pb.ModelInferRequest.FromString(bundle))
    (error,) = unbundle(await stream.read())
    assert error.infer_response.id == "id 4"
    await stage.taken(3)
    for value in (1, 2, 3):
        stage.complete(value)
    answers = unbundle(await stream.read())
    assert len(answers) == 3
    for value, answer in zip((1, 2, 3), answers, strict=True):
        check_answer(answer, value)


def test_requests_of_our_own_client_never_keep_its_cancellations_from_being_read() -> None:
    # Inputs are smaller than the messages that bring them, so this many stay below the bound.
    assert DEFAULT_LIMITS.max_bytes >= MAX_IN_FLIGHT * MAX_MESSAGE_BYTES
    assert DEFAULT_LIMITS.max_requests > MAX_IN_FLIGHT


async def test_bundle_is_opened_no_further_than_there_is_room(stage: Stage) -> None:
    stream = stage.stream(BUNDLES)
    bundle = bundle_of_requests([request(value).SerializeToString() for value in range(1, 7)])
    await stream.write(pb.ModelInferRequest.FromString(bundle))
    await stage.taken(LIMITS.max_requests)
    other = stage.stream()
    await other.write(request(9))
    await stage.taken(LIMITS.max_requests + 1)
    assert stage.held_values() == {1, 2, 3, 4, 9}
    for value, next_one in ((1, 5), (2, 6)):
        stage.complete(value)
        check_answer(await stream.read(), value)
        await until(lambda value=next_one: value in stage.held_values())
    assert stage.held_values() == {3, 4, 5, 6, 9}


async def test_bundle_of_more_than_a_client_sends_is_one_error(stage: Stage) -> None:
    stream = stage.stream(BUNDLES)
    one = request(1).SerializeToString()
    await stream.write(pb.ModelInferRequest(raw_input_contents=[one] * (MAX_BUNDLE + 1)))
    error = await stream.read()
    assert f"expected at most {MAX_BUNDLE} messages, got {MAX_BUNDLE + 1}" in error.error_message
    reason = error.infer_response.parameters["headrace_reason"].string_param
    assert reason == "invalid_parameter"
    await stream.write(request(2))
    await stage.taken(1)
    assert stage.held_values() == {2}


async def test_malformed_bundle_is_an_error_and_the_stream_goes_on(stage: Stage) -> None:
    stream = stage.stream(BUNDLES)
    nested = pb.ModelInferRequest(raw_input_contents=[request(1).SerializeToString()])
    for content in (b"\xff\xff", nested.SerializeToString()):
        await stream.write(pb.ModelInferRequest(raw_input_contents=[content]))
    errors = list(unbundle(await stream.read()))
    while len(errors) < 2:
        errors += unbundle(await stream.read())
    assert "expected a serialised ModelInferRequest, got 2 other bytes" in errors[0].error_message
    assert errors[1].error_message == "Request for unknown model: '' is not found"
    await stream.write(request(2))
    await stage.taken(1)
    stage.complete(2)
    check_answer(await stream.read(), 2)


async def test_client_that_asks_who_is_there_is_answered_and_not_counted(stage: Stage) -> None:
    stream = stage.stream()
    await stream.write(pb.ModelInferRequest(id="probe"))
    answer = await stream.read()
    assert answer.infer_response.id == "probe"
    assert "headrace_code" in answer.infer_response.parameters
    assert not stage.counted("headrace_refusals_total")
    await stream.write(request(1, model="nobody"))
    assert (await stream.read()).infer_response.id == "id 1"
    assert stage.counted("headrace_refusals_total", reason="unknown_model") == 1


async def test_deadline_of_the_stream_bounds_its_requests(stage: Stage) -> None:
    stream = stage.stream(timeout=0.1)
    await stream.write(request(1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: stage.cancelled() == 1)


async def test_others_of_a_stream_may_end_while_one_of_it_is_taken_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the deadline of another passes while the decision is made that each cancel costs."""
    take_back = stage.deployment.cancel

    def others_end_too(ticket: Any) -> None:
        take_back(ticket)
        monkeypatch.undo()
        stage.deployment._requests.abandon()

    monkeypatch.setattr(stage.deployment, "cancel", others_end_too)
    stream = stage.stream(UNORDERED)
    for value in (1, 2, 3):
        await stream.write(request(value))
    await stage.taken(3)
    stream.cancel()
    await until(lambda: stage.cancelled() == 1)
    await until(lambda: stage.counted("headrace_requests_total", outcome="stopping") == 2)
    await stage.server.stop(0)
    assert not caplog.records

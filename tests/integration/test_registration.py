"""Messages that are none, and methods that are not there: refused by the table, never logged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from headrace.errors import server_error
from headrace.large_messages import INFER_METHOD
from headrace.protocol import grpc_service_pb2 as pb
from stream_stage import Stage, request, until
from wire.peer import deaf

if TYPE_CHECKING:
    from conftest import Served

GARBAGE = b"\xff\xff\xff"
SERVICE = "/inference.GRPCInferenceService/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (f"{SERVICE}ModelInfer", "ModelInferRequest"),
        (f"{SERVICE}ServerReady", "ServerReadyRequest"),
        (f"{SERVICE}ModelMetadata", "ModelMetadataRequest"),
        (f"{SERVICE}RepositoryModelLoad", "RepositoryModelLoadRequest"),
        ("/headrace.v1.ExplanationService/ExplainModel", "ExplainModelRequest"),
        ("/grpc.health.v1.Health/Check", "HealthCheckRequest"),
    ],
)
async def test_what_is_no_message_is_refused(
    served: Served, caplog: pytest.LogCaptureFixture, method: str, message: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.channel.unary_unary(method)(GARBAGE)
    error = server_error(refused.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "malformed_message"
    assert error.message == f"expected a serialised {message}, got 3 other bytes"
    assert refusals(served) == 1
    assert caplog.records == []


@pytest.mark.parametrize("method", [f"{SERVICE}ModelStreamInfer", REFLECTION])
async def test_what_is_no_message_ends_a_stream(
    served: Served, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    call = served.channel.stream_stream(method)()
    await call.write(GARBAGE)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "got 3 other bytes" in (await call.details() or "")
    assert refusals(served) == 1
    assert caplog.records == []


async def test_a_method_that_is_missing_is_refused_without_a_word_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.stub.TraceSetting(pb.TraceSettingRequest())
    error = server_error(refused.value)
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert error.reason == "unsupported"
    assert error.message == "TraceSetting is not supported by this server"
    assert caplog.records == []


async def test_what_came_before_on_the_stream_is_answered() -> None:
    stage = Stage()
    await stage.start()
    try:
        method = stage.channel.stream_stream(f"{SERVICE}ModelStreamInfer")()
        await method.write(request(1).SerializeToString())
        await method.write(GARBAGE)
        await stage.taken(1)
        stage.complete(1)
        answer = pb.ModelStreamInferResponse.FromString(await method.read())
        assert answer.infer_response.id == "id 1"
        assert await method.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await stage.stop()


async def test_a_caller_that_vanishes_before_it_is_answered_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    await stage.start()
    try:
        caller = deaf(stage.address)
        caller.open(INFER_METHOD, request(1).SerializeToString(), end=True)
        await stage.taken(1)
        caller.reset()
        await until(lambda: stage.cancelled() == 1)
        stage.complete(1)
        answer = asyncio.ensure_future(stage.stub.ModelInfer(request(2)))
        await stage.taken(2)
        stage.complete(2)
        assert (await answer).id == "id 2"
    finally:
        await stage.stop()
    assert caplog.records == []


def refusals(served: Served) -> float:
    return sum(
        sample.value
        for family in served.metrics.collect()
        for sample in family.samples
        if sample.name == "headrace_refusals_total"
        and sample.labels.get("reason") == "malformed_message"
    )

"""What calls leave behind, however they end: nothing of theirs waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import grpc
import pytest

from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.fronts.forwarding import Forwarding
from stream_stage import Stage, request, until

SERVICE = "/inference.GRPCInferenceService/"
ERROR_ENDS = (("triton_grpc_error", "true"),)
CALLS = 5

End = Callable[[Stage], Awaitable[None]]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.start()
    yield stage
    await stage.stop()


def misshapen() -> pb.ModelInferRequest:
    message = request(1)
    message.inputs[0].shape[1] = 7
    return message


async def ended(call: Any) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call


async def run(stage: Stage, finish: Callable[[Any], None]) -> None:
    call = stage.stub.ModelInfer(request(1))
    await until(lambda: 1 in stage.held_values())
    finish(call)
    await ended(call)


async def cancelled(stage: Stage) -> None:
    before = stage.cancelled()
    await run(stage, lambda call: call.cancel())
    await until(lambda: stage.cancelled() > before)
    stage.complete(1)


async def streamed(stage: Stage, finish: Callable[[], None]) -> None:
    stream = stage.stream()
    await stream.write(request(1))
    await until(lambda: 1 in stage.held_values())
    finish()
    await stream.read()
    await stream.done_writing()
    await stream.read()


async def read_after(stage: Stage, message: pb.ModelInferRequest, metadata: Any = ()) -> None:
    stream = stage.stream(metadata)
    await stream.write(message)
    await ended(stream.read())
    await stream.done_writing()
    await ended(stream.read())


async def broken_stream(stage: Stage) -> None:
    stream = stage.channel.stream_stream(f"{SERVICE}ModelStreamInfer")()
    await stream.write(b"\xff\xff")
    await ended(stream.read())


async def abandoned_stream(stage: Stage) -> None:
    before = stage.cancelled()
    stream = stage.stream()
    await stream.write(request(1))
    await until(lambda: 1 in stage.held_values())
    stream.cancel()
    await until(lambda: stage.cancelled() > before)
    stage.complete(1)


ENDS: dict[str, End] = {
    "answered": lambda s: run(s, lambda _: s.complete(1)),
    "failed by the model": lambda s: run(s, lambda _: s.fail(1)),
    "cancelled": cancelled,
    "late": lambda s: ended(s.stub.ModelInfer(request(1), timeout=0)),
    "unknown model": lambda s: ended(s.stub.ModelInfer(request(1, model="nobody"))),
    "wrong shape": lambda s: ended(s.stub.ModelInfer(misshapen())),
    "no message": lambda s: ended(s.channel.unary_unary(f"{SERVICE}ModelInfer")(b"\xff\xff")),
    "no such method": lambda s: ended(s.channel.unary_unary(f"{SERVICE}TraceSetting")(b"")),
    "refused elsewhere": lambda s: ended(
        s.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="model"))
    ),
    "answered on a stream": lambda s: streamed(s, lambda: s.complete(1)),
    "failed on a stream": lambda s: streamed(s, lambda: s.fail(1)),
    "wrong shape on a stream": lambda s: read_after(s, misshapen()),
    "unknown model that ends a stream": lambda s: read_after(
        s, request(1, model="nobody"), ERROR_ENDS
    ),
    "no message on a stream": broken_stream,
    "stream that is cancelled": abandoned_stream,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_what_a_call_held_is_freed_when_it_ends(stage: Stage, end: End) -> None:
    """Cycles would keep it for minutes, whole tensors included: those are looked for rarely."""
    await end(stage)
    found = await garbage_of(stage, end)
    assert [described(item) for item in found if ours(item)] == []


async def test_what_a_call_held_that_was_passed_on_is_freed(stage: Stage) -> None:
    front = grpc.aio.server()
    front.add_generic_rpc_handlers((Forwarding(stage.channel),))
    port = front.add_insecure_port("127.0.0.1:0")
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")

        async def refused(_: Stage) -> None:
            await ended(metadata(pb.ModelMetadataRequest(name="nobody").SerializeToString()))

        found = await garbage_of(stage, refused)
    await front.stop(0)
    assert [described(item) for item in found if ours(item)] == []


async def garbage_of(stage: Stage, end: End) -> list[object]:
    """What the collector finds after some such calls."""
    idle = len(asyncio.all_tasks())
    gc.collect()
    gc.disable()
    try:
        for _ in range(CALLS):
            await end(stage)
            stage.workers.batches.clear()
        await until(lambda: len(asyncio.all_tasks()) <= idle)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [*gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def ours(item: object) -> bool:
    """Whether it is of a call: gRPC leaves a few small objects of its own behind each."""
    kind = type(item)
    return kind in (FrameType, TracebackType) or str(kind.__module__).startswith("headrace")


def described(item: object) -> str:
    if isinstance(item, FrameType):
        return f"frame of {item.f_code.co_qualname}"
    return type(item).__qualname__

"""What the server takes at most: bytes of a message, nothing compressed, and connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from headrace.multiplexing import METHOD as STREAM_METHOD
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.rpc.server import RpcLimits
from stream_stage import Stage, request, until
from wire.peer import deaf

LIMITS = RpcLimits(max_message_bytes=10_000, max_connections=2)


@pytest.fixture
async def unpacking() -> AsyncIterator[Stage]:
    stage = Stage(grpc_limits=replace(LIMITS, compressed=True))
    await stage.start()
    yield stage
    await stage.stop()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(grpc_limits=LIMITS)
    await stage.start()
    yield stage
    await stage.stop()


SMALL = request(1, model="missing", rows=4_000)
LARGE = request(1, model="missing", rows=5_000_000)
"""Packed, these 10 MB travel as some 10 kB."""


async def refusal(stage: Stage, message: pb.ModelInferRequest, **options: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.ModelInfer(message, **options)
    return refused.value.code()


async def test_a_message_beyond_the_limit_is_refused(stage: Stage) -> None:
    assert await refusal(stage, SMALL) is grpc.StatusCode.NOT_FOUND
    assert await refusal(stage, LARGE) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("message", [SMALL, LARGE], ids=["small", "large"])
async def test_a_compressed_message_is_refused_unread(
    stage: Stage, compression: grpc.Compression, message: pb.ModelInferRequest
) -> None:
    code = await refusal(stage, message, compression=compression)
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_where_compression_is_accepted_a_message_counts_as_what_it_becomes(
    unpacking: Stage,
) -> None:
    packed = {"compression": grpc.Compression.Gzip}
    assert await refusal(unpacking, SMALL, **packed) is grpc.StatusCode.NOT_FOUND
    assert await refusal(unpacking, LARGE, **packed) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_connection_too_many_is_closed_and_the_others_are_served(stage: Stage) -> None:
    channels = [
        grpc.aio.insecure_channel(stage.address, [("headrace.test", number)]) for number in range(3)
    ]
    codes = []
    for channel in channels:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rpc.GRPCInferenceServiceStub(channel).ModelInfer(request(1, model="missing"))
        codes.append(refused.value.code())
    assert codes == [grpc.StatusCode.NOT_FOUND] * 2 + [grpc.StatusCode.UNAVAILABLE]
    for channel in channels:
        await channel.close()


async def test_a_peer_that_is_gone_without_a_word_is_noticed_and_its_requests_leave() -> None:
    stage = Stage(grpc_limits=replace(LIMITS, ping_after_s=1.0, ping_timeout_s=1.0))
    await stage.start()
    # It takes what it is sent and answers no ping, as when the machine behind a proxy is gone.
    with deaf(stage.address) as gone:
        gone.open(STREAM_METHOD, request(1).SerializeToString())
        await stage.taken(1)
        assert await asyncio.to_thread(gone.closed_by_peer, 30.0)
    await until(lambda: stage.cancelled() == 1)
    await stage.stop()

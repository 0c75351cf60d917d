"""What the server takes at most: bytes of a message, packed or not, and connections."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.transport.grpc_server import GrpcLimits
from stream_stage import Stage, request

LIMITS = GrpcLimits(max_message_bytes=10_000, max_connections=2)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(grpc_limits=LIMITS)
    await stage.start()
    yield stage
    await stage.stop()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_counts_as_what_it_is_when_unpacked(
    stage: Stage, compression: grpc.Compression
) -> None:
    small = request(1, model="missing", rows=4_000)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.ModelInfer(small, compression=compression)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    # Packed, these 10 MB travel as some 10 kB.
    bomb = request(1, model="missing", rows=5_000_000)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.ModelInfer(bomb, compression=compression)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (refused.value.details() or "")


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

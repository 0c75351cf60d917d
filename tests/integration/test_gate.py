"""Tokens on a real gRPC server: who gets in, to which models, how often; and what is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace import AsyncClient, RetryPolicy
from headrace.errors import PermissionDenied, Unauthenticated, Unavailable
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.transport.gate import bytes_of
from headrace_server.transport.tenants import Tenants, hash_of, parse_tenants
from shared_memory import DIRECTORY, shared_file
from stream_stage import WORKERS, Stage, request, until

ONCE = RetryPolicy(max_attempts=1)
FILE = f"""
[tenants.user]
tokens = ["{hash_of("user")}"]
models = ["mod*"]
[tenants.stranger]
tokens = ["{hash_of("stranger")}"]
models = ["another"]
[tenants.slow]
tokens = ["{hash_of("slow")}"]
models = ["*"]
requests_per_second = 0.5
[tenants.thin]
tokens = ["{hash_of("thin")}"]
models = ["*"]
bytes_per_second = 10
[tenants.sharer]
tokens = ["{hash_of("sharer")}"]
models = ["mod*"]
bytes_per_second = 100
shared_memory = true
[tenants.other]
tokens = ["{hash_of("other")}"]
models = ["*"]
weight = 2.0
[tenants.boss]
tokens = ["{hash_of("boss")}"]
admin = true
"""


class Guarded(Stage):
    """A stage behind a gate whose tenants and clock a test may change."""

    def __init__(self) -> None:
        self.tenants = Tenants(parse_tenants(FILE, "file"))
        self.moment = 0.0
        super().__init__(gate=(lambda: self.tenants, lambda: self.moment))


@pytest.fixture
async def stage() -> AsyncIterator[Guarded]:
    stage = Guarded()
    await stage.start()
    yield stage
    await stage.stop()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def refusals(stage: Stage, reason: str, model: str = "") -> float:
    return stage.counted("headrace_refusals_total", reason=reason, model=model)


async def answered(stage: Stage, value: int, token: str) -> Any:
    call = stage.stub.ModelInfer(request(value), metadata=bearer(token))
    await until(lambda: value in stage.held_values())
    stage.complete(value)
    return await call


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "user"),),
        (("authorization", "Basic user"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer nobody"),),
        (("authorization", f"Bearer {hash_of('user')}"),),
        (*bearer("user"), *bearer("user")),
    ],
)
async def test_without_a_known_token_nothing_but_health_is_answered(
    stage: Guarded, metadata: Any
) -> None:
    calls = (
        stage.stub.ModelInfer(request(1), metadata=metadata),
        stage.stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=metadata),
        stage.stub.ModelMetadata(pb.ModelMetadataRequest(name="model"), metadata=metadata),
        stage.stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=metadata),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    stream = stage.stream(metadata)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refusals(stage, "unauthenticated") == 5
    assert (await stage.stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stage.stub.ServerReady(pb.ServerReadyRequest())).ready
    health = health_pb2_grpc.HealthStub(stage.channel)
    status = await health.Check(health_pb2.HealthCheckRequest())
    assert status.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_known_token_is_served_whatever_the_case_of_the_scheme(stage: Guarded) -> None:
    response = await answered(stage, 7, "user")
    assert response.raw_output_contents[0] == b"\x07\x07"
    await stage.stub.ServerMetadata(
        pb.ServerMetadataRequest(), metadata=(("authorization", "bearer user"),)
    )


async def test_other_models_are_refused_alike_whether_or_not_they_exist(stage: Guarded) -> None:
    async with AsyncClient(stage.address, retry=ONCE, token="stranger") as client:
        for model in ("model", "missing"):
            with pytest.raises(PermissionDenied) as refused:
                await client.model_metadata(model)
            assert refused.value.message == (
                f"this token does not allow the use of model '{model}'"
            )
            with pytest.raises(PermissionDenied):
                await client.explain(model)
            with pytest.raises(PermissionDenied):
                await client.statistics(model)
        assert await client.index() == []
        assert await client.statistics() == []
    assert refusals(stage, "not_allowed", "model") == 3
    assert refusals(stage, "not_allowed") == 3
    async with AsyncClient(stage.address, token="user") as client:
        assert [entry.name for entry in await client.index()] == ["model"]


async def test_management_is_for_admins_and_inference_is_not_part_of_it(stage: Guarded) -> None:
    load = pb.RepositoryModelLoadRequest(model_name="model")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.RepositoryModelLoad(load, metadata=bearer("user"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "RepositoryModelLoad, which is for admins" in (refused.value.details() or "")
    # What an admin is told is what the server's mode says.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.RepositoryModelLoad(load, metadata=bearer("boss"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    async with AsyncClient(stage.address, retry=ONCE, token="boss") as client:
        with pytest.raises(PermissionDenied):
            await client.model_metadata("model")


async def test_too_many_requests_are_told_when_to_come_again(stage: Guarded) -> None:
    await answered(stage, 1, "slow")
    async with AsyncClient(stage.address, retry=ONCE, token="slow") as client:
        with pytest.raises(Unavailable) as refused:
            await client.infer("model", {"x": [[1, 1]]})
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (refused.value.reason, refused.value.retry_after_s) == ("rate_limited", 2.0)
        assert "0.5 requests per second" in refused.value.message
    assert refusals(stage, "rate_limited", "model") == 1
    stage.moment = 2.0
    await answered(stage, 2, "slow")


async def test_bytes_are_paid_for_by_the_requests_that_follow(stage: Guarded) -> None:
    sent = request(1).ByteSize()
    await answered(stage, 1, "thin")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.ModelInfer(request(2), metadata=bearer("thin"))
    assert "10 bytes per second" in (refused.value.details() or "")
    stage.moment = sent / 10
    await answered(stage, 3, "thin")


async def test_each_request_of_a_stream_is_asked_and_the_stream_goes_on(stage: Guarded) -> None:
    stream = stage.stream(bearer("slow"))
    await stream.write(request(1))
    await stage.taken(1)
    stage.complete(1)
    assert (await stream.read()).error_message == ""
    await stream.write(request(2))
    assert "0.5 requests per second" in (await stream.read()).error_message
    stage.moment = 2.0
    await stream.write(request(3))
    await stage.taken(2)
    stage.complete(3)
    assert (await stream.read()).error_message == ""
    await stream.done_writing()


async def test_a_token_taken_back_ends_what_an_open_stream_may_do(stage: Guarded) -> None:
    stream = stage.stream(bearer("user"))
    await stream.write(request(1))
    await stage.taken(1)
    stage.complete(1)
    assert (await stream.read()).error_message == ""
    stage.tenants = Tenants({})
    await stream.write(request(2))
    assert "a token that this server knows" in (await stream.read()).error_message
    await stream.write(request(3, model="missing"))
    assert "a token that this server knows" in (await stream.read()).error_message
    await stream.done_writing()
    async with AsyncClient(stage.address, retry=ONCE, token="user") as client:
        with pytest.raises(Unauthenticated):
            await client.index()


async def test_the_sdk_shows_its_token_on_shared_streams_too(stage: Guarded) -> None:
    # The first call of a model goes alone, and so does everything before a stream is open.
    async with AsyncClient(stage.address, token="stranger", multiplex=True, retry=ONCE) as client:
        for _ in range(3):
            with pytest.raises(PermissionDenied):
                await client.infer("model", {"x": [[1, 1]]})


async def test_a_flood_of_one_tenant_gives_way_to_another_and_takes_turns_with_it(
    stage: Guarded,
) -> None:
    held = 2 * WORKERS  # one batch runs and one is staged on each
    flood = [stage.stub.ModelInfer(request(i), metadata=bearer("user")) for i in range(held)]
    await until(lambda: len(stage.workers.batches) == held)
    flood += [stage.stub.ModelInfer(request(100), metadata=bearer("user")) for _ in range(100)]
    await until(lambda: stage.deployment.queued_requests == 100)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stage.stub.ModelInfer(request(3), metadata=bearer("user"))
    assert "Exceeds maximum queue size" in (refused.value.details() or "")
    stream = stage.stream(bearer("other"))
    for _ in range(2):
        await stream.write(request(200))
    await until(lambda: refusals(stage, "queue_full", "model") == 3)
    assert stage.deployment.queued_requests == 100
    for held_by in [*stage.workers.held.values()][:3]:
        stage.workers.complete(held_by[0])
    await until(lambda: len(stage.workers.batches) == held + 3)
    started = [batch[0].data[0] for batch in stage.workers.batches.values()][held:]
    assert sorted(bytes(data or b"")[0] for data in started) == [100, 200, 200]
    for call in flood:
        call.cancel()
    stream.cancel()


def test_reflection_and_tokens_never_show_in_a_repr() -> None:
    from headrace.access import Access

    assert "secret" not in repr(Access(token="secret"))


needs_shared_memory = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="no /dev/shm here")


@needs_shared_memory
async def test_only_who_may_share_memory_can_and_each_tenant_sees_its_own(stage: Guarded) -> None:
    stub = stage.stub
    with shared_file(b"\x05\x05" * 500) as file:
        register = pb.SystemSharedMemoryRegisterRequest(name="r", key=file.name, byte_size=1000)
        for token in ("sharer", "boss"):
            await stub.SystemSharedMemoryRegister(register, metadata=bearer(token))
        forget = pb.SystemSharedMemoryUnregisterRequest()
        await stub.SystemSharedMemoryUnregister(forget, metadata=bearer("boss"))
        everything = pb.SystemSharedMemoryStatusRequest()
        listed = await stub.SystemSharedMemoryStatus(everything, metadata=bearer("sharer"))
        assert list(listed.regions) == ["r"]
        message = request(5)
        message.raw_input_contents.pop()
        message.inputs[0].parameters["shared_memory_region"].string_param = "r"
        message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 2
        for call in (
            stub.SystemSharedMemoryRegister(register, metadata=bearer("user")),
            stub.SystemSharedMemoryStatus(everything, metadata=bearer("user")),
            stub.SystemSharedMemoryUnregister(forget, metadata=bearer("user")),
            stub.ModelInfer(message, metadata=bearer("user")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "the use of shared memory" in (refused.value.details() or "")


def test_bytes_in_shared_memory_count_too_but_no_more_than_are_ever_taken() -> None:
    message, most = request(5), 1 << 20
    alone = bytes_of(message, most)
    size = message.inputs[0].parameters["shared_memory_byte_size"]
    size.uint64_param = 1 << 10
    said = bytes_of(message, most)
    assert 1 << 10 <= said - alone < (1 << 10) + 50
    size.int64_param = (1 << 63) - 1
    assert most <= bytes_of(message, most) < most + alone + 50
    size.int64_param = -1
    assert bytes_of(message, most) < alone + 50
    assert bytes_of(message, 0) == message.ByteSize()

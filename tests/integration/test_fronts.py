"""Several real front processes before one engine: exact answers, counts, limits and ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from doubles import PuppetExecutor
from engine_stage import spec_of
from fronted_stage import FrontedStage
from headrace import AsyncClient, RetryPolicy
from headrace.errors import PermissionDenied, Unauthenticated
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.fronts.port import HeldPort
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.spec import TensorSpec
from headrace_server.transport.grpc_server import PortUnavailableError
from headrace_server.transport.tenants import hash_of
from stream_stage import WORKERS, request, until
from worker_processes import alive, slabs_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fronts need Linux")

ONCE = RetryPolicy(max_attempts=1)
TOKENS = f"""
[tenants.user]
tokens = ["{hash_of("user")}"]
models = ["mod*"]
[tenants.slow]
tokens = ["{hash_of("slow")}"]
models = ["*"]
requests_per_second = 0.001
[tenants.boss]
tokens = ["{hash_of("boss")}"]
admin = true
"""


@pytest.fixture
async def stage() -> AsyncIterator[FrontedStage]:
    stage = FrontedStage()
    await stage.start()
    yield stage
    await stage.stop()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[FrontedStage]:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    stage = FrontedStage(tokens)
    await stage.start()
    yield stage
    await stage.stop()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def complete_all(stage: FrontedStage) -> None:
    """Workers answer whatever comes to them, until cancelled."""
    while True:
        for batches in stage.workers.held.values():
            while batches:
                stage.workers.complete(batches[0])
        await asyncio.sleep(0.001)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


async def test_every_answer_is_right_and_every_count_exact_over_both(stage: FrontedStage) -> None:
    working = asyncio.create_task(complete_all(stage))
    streams = [stub.ModelStreamInfer() for stub in stage.stubs]
    wrong = request(1)
    wrong.inputs[0].shape[:] = [1, 3]
    for value in range(4):
        calls = [stub.ModelInfer(request(16 * value + i)) for i, stub in enumerate(stage.stubs)]
        for i, response in enumerate(await asyncio.gather(*calls)):
            assert response.raw_output_contents[0] == bytes([16 * value + i] * 2)
            assert response.id == f"id {16 * value + i}"
        for i, stream in enumerate(streams):
            await stream.write(request(100 + i))
            answer = await stream.read()
            assert answer.infer_response.raw_output_contents[0] == bytes([100 + i] * 2)
        for stub in stage.stubs:
            code, details = await status_of(stub.ModelInfer(wrong))
            assert (code, "[-1, 2]" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
            code, _ = await status_of(stub.ModelInfer(request(1, model="missing")))
            assert code is grpc.StatusCode.NOT_FOUND
    for stream in streams:
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    count = len(stage.stubs) * 4
    refused = "headrace_refusals_total"
    await until(lambda: stage.counted(refused, reason="unknown_model", model="") == count)
    assert stage.counted(refused, reason="wrong_shape", model="model") == count
    assert stage.counted("headrace_requests_total", outcome="ok") == 2 * count
    statistics = await stage.stub.ModelStatistics(pb.ModelStatisticsRequest(name="model"))
    assert statistics.model_stats[0].inference_stats.success.count == 2 * count
    assert [front.running for front in stage.fronts] == [0, 0]
    working.cancel()


async def test_the_sdk_multiplexes_over_fronts(stage: FrontedStage) -> None:
    working = asyncio.create_task(complete_all(stage))
    async with AsyncClient(stage.address, multiplex=True) as client:

        async def call(value: int) -> None:
            data = np.full((1, 2), value, np.uint8)
            answer = await client.infer("model", {"x": data}, timeout=10.0)
            assert (answer["y"] == data).all()

        for first in range(0, 200, 50):
            await asyncio.gather(*(call(value) for value in range(first, first + 50)))
    working.cancel()


async def test_large_requests_fit_whatever_their_size(stage: FrontedStage) -> None:
    working = asyncio.create_task(complete_all(stage))
    options = (("grpc.max_receive_message_length", -1),)
    async with grpc.aio.insecure_channel(stage.address, options=options) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        for rows in (1 << 21, (1 << 25) + 1):  # one fits into shared memory, one does not
            sent = request(9, rows=rows)
            assert (await infer(sent)).raw_output_contents == sent.raw_input_contents
    working.cancel()


async def test_a_call_taken_back_or_out_of_time_leaves_the_queue(stage: FrontedStage) -> None:
    held = [stub.ModelInfer(request(i)) for i, stub in enumerate(stage.stubs)]
    await until(lambda: len(stage.workers.batches) == 2 * WORKERS)
    queued = [stub.ModelInfer(request(50)) for stub in stage.stubs]
    late = [stub.ModelInfer(request(51), timeout=0.3) for stub in stage.stubs]
    stream = stage.stream()
    await stream.write(request(52))
    count = len(stage.stubs)
    await until(lambda: stage.deployment.queued_requests >= count + 1)
    for call in queued:
        call.cancel()
    for call in late:
        code, _ = await status_of(call)
        assert code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    stream.cancel()
    await until(lambda: stage.deployment.queued_requests == 0)
    working = asyncio.create_task(complete_all(stage))
    for i, response in enumerate(await asyncio.gather(*held)):
        assert response.raw_output_contents[0] == bytes([i] * 2)
    assert stage.cancelled() >= count + 1
    working.cancel()


async def test_what_is_no_inference_is_passed_on_as_it_is(stage: FrontedStage) -> None:
    metadata = await stage.stub.ModelMetadata(pb.ModelMetadataRequest(name="model"))
    assert [tensor.name for tensor in metadata.inputs] == ["x"]
    code, details = await status_of(
        stage.stub.ModelMetadata(pb.ModelMetadataRequest(name="missing"))
    )
    assert code is grpc.StatusCode.NOT_FOUND
    assert details == "Request for unknown model: 'missing' is not found"
    health = health_pb2_grpc.HealthStub(stage.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="model"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stage.engine.stopping = True
    code, _ = await status_of(stage.stub.ModelMetadata(pb.ModelMetadataRequest(name="model")))
    assert code is grpc.StatusCode.UNAVAILABLE
    stage.engine.stopping = False
    watch.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(stage.channel).ServerReflectionInfo()
    await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await reflection.read()).list_services_response.service
    assert "inference.GRPCInferenceService" in [service.name for service in listed]
    await reflection.done_writing()
    call = stage.channel.unary_unary("/nobody.Knows/It")
    assert (await status_of(call(b"x")))[0] is grpc.StatusCode.UNIMPLEMENTED
    nothing = stage.channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
    assert (await status_of(nothing(b"\xff")))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokens_count_at_every_front_and_for_what_is_passed_on(
    guarded: FrontedStage,
) -> None:
    stage = guarded
    working = asyncio.create_task(complete_all(stage))
    for stub in stage.stubs:
        code, _ = await status_of(stub.ModelInfer(request(1)))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        code, _ = await status_of(stub.ModelMetadata(pb.ModelMetadataRequest(name="model")))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        answer = await stub.ModelInfer(request(2), metadata=bearer("user"))
        assert answer.raw_output_contents[0] == b"\2\2"
    count = 2 * len(stage.stubs)
    refused = "headrace_refusals_total"
    await until(lambda: stage.counted(refused, reason="unauthenticated") == count)
    async with AsyncClient(stage.address, token="user", retry=ONCE) as client:
        assert [row.name for row in await client.index()] == ["model"]
        with pytest.raises(PermissionDenied):
            await client.load_model("model")
        with pytest.raises(PermissionDenied):
            await client.infer("other", {"x": np.zeros((1, 2), np.uint8)})
    async with AsyncClient(stage.address, token="nobody", retry=ONCE) as client:
        with pytest.raises(Unauthenticated):
            await client.index()
    working.cancel()


async def test_who_is_refused_is_not_read(guarded: FrontedStage) -> None:
    """Of none of these calls a message ever comes; who waits for one would wait for ever."""
    known, unknown = "/inference.GRPCInferenceService/ModelMetadata", "/nobody.Knows/It"
    async with asyncio.timeout(20):
        for method, who, expected in (
            (known, None, grpc.StatusCode.UNAUTHENTICATED),
            (unknown, None, grpc.StatusCode.UNAUTHENTICATED),
            (unknown, "user", grpc.StatusCode.PERMISSION_DENIED),
            (unknown, "boss", grpc.StatusCode.UNIMPLEMENTED),
        ):
            for channel in guarded.channels[:2]:
                metadata = None if who is None else bearer(who)
                call = channel.stream_unary(method)(metadata=metadata)
                assert await call.code() is expected
        refused = "headrace_refusals_total"
        await until(lambda: guarded.counted(refused, reason="unauthenticated") == 4)
        await until(lambda: guarded.counted(refused, reason="not_allowed") == 2)


async def test_a_rate_holds_over_all_fronts_together(guarded: FrontedStage) -> None:
    stage = guarded
    working = asyncio.create_task(complete_all(stage))
    calls = [
        stub.ModelInfer(request(3), metadata=bearer("slow")) for stub in stage.stubs for _ in "ab"
    ]
    told = await asyncio.gather(*calls, return_exceptions=True)
    answered = [answer for answer in told if isinstance(answer, pb.ModelInferResponse)]
    assert len(answered) == 1
    refused = "headrace_refusals_total"
    await until(lambda: stage.counted(refused, reason="rate_limited") == len(told) - 1)
    working.cancel()


async def test_a_front_that_is_killed_costs_its_own_calls_alone_and_comes_back(
    stage: FrontedStage,
) -> None:
    gc.collect()  # what tests before this one left mapped goes now, not in the middle
    slabs = slabs_of(os.getpid())
    held = [stub.ModelInfer(request(i, rows=400)) for i, stub in enumerate(stage.stubs)]
    await until(lambda: len(stage.workers.batches) == 2 * WORKERS)
    queued = [stub.ModelInfer(request(50, rows=400)) for stub in stage.stubs]
    await until(lambda: stage.deployment.queued_requests == len(queued))
    gone, other = stage.fronts
    theirs, ours = gone.running, other.running
    assert theirs + ours == len(held) + len(queued)
    await stage.kill(gone)
    assert gone.running == 0
    assert other.running == ours
    assert stage.deployment.queued_requests == ours / 2
    assert stage.cancelled() == theirs
    working = asyncio.create_task(complete_all(stage))
    told = await asyncio.gather(*held, *queued, return_exceptions=True)
    assert sum(isinstance(answer, pb.ModelInferResponse) for answer in told) == ours
    for answer in told:
        if isinstance(answer, grpc.aio.AioRpcError):
            assert answer.code() is grpc.StatusCode.UNAVAILABLE
    await stage.serve_again(gone)
    stage.channels += [stage.connect() for _ in range(16)]
    calls = [stub.ModelInfer(request(7), wait_for_ready=True) for stub in stage.stubs]
    await asyncio.gather(*calls)
    assert not alive(gone.pid or 0)
    working.cancel()
    stage.workers.batches.clear()
    gc.collect()
    assert slabs_of(os.getpid()) == slabs


@pytest.mark.parametrize("versions", [[1], [2, 1]], ids=["reloads", "there and back"])
async def test_reloads_under_load_lose_nothing(stage: FrontedStage, versions: list[int]) -> None:
    working = asyncio.create_task(complete_all(stage))
    over = False
    spec = spec_of(
        max_batch_size=0, x=TensorSpec("x", "UINT8", [-1, 2]), y=TensorSpec("y", "UINT8", [-1, 2])
    )

    async def caller(index: int) -> int:
        answered = 0
        while not over:
            response = await stage.stubs[index].ModelInfer(request(index))
            assert response.raw_output_contents[0] == bytes([index] * 2)
            answered += 1
        return answered

    async def answering(workers: PuppetExecutor) -> None:
        while True:
            for batches in workers.held.values():
                while batches:
                    workers.complete(batches[0])
            await asyncio.sleep(0)

    callers = [asyncio.create_task(caller(index)) for index in range(len(stage.stubs))]
    tasks = [working]
    for _, version in zip(range(20), itertools.cycle(versions), strict=False):
        workers = PuppetExecutor(spec, workers=WORKERS)
        deployment = Deployment(
            "model",
            version,
            workers,
            lambda _: SchedulingRules(BatchingSettings(0), max_requests=100, max_bytes=1 << 20),
            LoopClock(),
            stage.engine.observer,
        )
        stage.engine.announce(deployment)
        await deployment.load()
        tasks.append(asyncio.create_task(answering(workers)))
        stage.engine.switch("model", [deployment])
        await until(lambda workers=workers: len(workers.batches) > 20)
    over = True
    assert sum(await asyncio.gather(*callers)) > 20 * 20
    for task in tasks:
        task.cancel()


async def test_a_model_unloaded_is_refused_by_all_fronts_alike(stage: FrontedStage) -> None:
    stage.engine.switch("model", [])
    await until(lambda: not stage.engine.knows("model"))
    await stage.fleet.settle()
    told = {await status_of(stub.ModelInfer(request(1))) for stub in stage.stubs}
    why = "it is not loaded, the repository index says why"
    text = f"Request for unknown model: 'model' has no available versions: {why}"
    assert told == {(grpc.StatusCode.UNAVAILABLE, text)}


async def test_stopping_answers_what_was_admitted_and_ends_streams_properly(
    stage: FrontedStage,
) -> None:
    held = [stub.ModelInfer(request(i)) for i, stub in enumerate(stage.stubs)]
    await until(lambda: len(stage.workers.batches) == 2 * WORKERS)
    streams = [stub.ModelStreamInfer() for stub in stage.stubs]
    for i, stream in enumerate(streams):
        await stream.write(request(100 + i))
    await until(lambda: stage.deployment.queued_requests == len(streams))
    pids = [front.pid or 0 for front in stage.fronts]
    working = asyncio.create_task(complete_all(stage))
    stage.engine.stopping = True
    stage.fleet.refresh()
    assert await stage.engine.drain(10.0)
    await stage.fleet.stop(5.0)
    for i, response in enumerate(await asyncio.gather(*held)):
        assert response.raw_output_contents[0] == bytes([i] * 2)
    for i, stream in enumerate(streams):
        answer = await stream.read()
        assert answer.infer_response.raw_output_contents[0] == bytes([100 + i] * 2)
        assert (await stream.code(), await stream.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "Server is stopping, scheduler for model is stopping",
        )
    assert not any(map(alive, pids))
    assert not stage.passed_on.parent.exists()
    working.cancel()


async def test_nobody_else_gets_the_port(stage: FrontedStage) -> None:
    port = int(stage.address.rpartition(":")[2])
    with pytest.raises(PortUnavailableError):
        HeldPort("127.0.0.1", port)

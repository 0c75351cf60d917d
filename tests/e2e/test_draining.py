"""How a server ends: it says so first, serves on, finishes what it admitted, and is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.aio import AsyncClient
from headrace.errors import Unavailable
from headrace_server.cli.serve import ONE_SIGNAL_S
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from worker_processes import alive, children_of

pytestmark = pytest.mark.e2e

SECONDS = 60.0
QUEUED = 'headrace_queue_requests{model="slow",version="1"}'
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("fronts", ["1", "2"])
async def test_readiness_goes_first_and_calls_are_served_on(
    serve: Callable[..., ServerProcess], fronts: str
) -> None:
    server = serve("--drain-delay", "600", "--fronts", fronts, affine="")
    children = children_of(server.pid)
    async with (
        asyncio.timeout(SECONDS),
        AsyncClient(server.grpc_address) as client,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        async def told(service: str) -> object:
            return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status

        assert await told("") == await told("affine") == SERVING
        os.kill(server.pid, signal.SIGTERM)
        while await client.server_ready():
            await asyncio.sleep(0.01)
        assert not await client.model_ready("affine")
        assert not await client.model_ready("affine", "1")
        while await told("") != NOT_SERVING or await told("affine") != NOT_SERVING:
            await asyncio.sleep(0.01)
        assert await client.server_live()
        for value in range(10):
            answer = await client.infer("affine", {"x": np.array([[value, 0, 0]])})
            assert answer["y"].tolist() == [[2 * value + 1, 1, 1]]
        assert [row.state for row in await client.index()] == ["READY"]
        await asyncio.sleep(ONE_SIGNAL_S)
        os.kill(server.pid, signal.SIGTERM)
    # The second signal ends the delay, and everything else, at once.
    assert await asyncio.to_thread(server.wait) == 1
    async with asyncio.timeout(SECONDS):
        while any(alive(pid) for pid in children):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fronts", ["1", "2"])
async def test_what_was_admitted_is_answered_after_the_delay(
    serve: Callable[..., ServerProcess], fronts: str
) -> None:
    server = serve("--drain-delay", "0.5", "--fronts", fronts, slow="max_batch_size: 1")
    async with asyncio.timeout(SECONDS), AsyncClient(server.grpc_address) as client:

        async def call(value: float) -> float | None:
            """The answer, or None for a call that came too late."""
            try:
                answer = await client.infer("slow", {"x": np.array([[value]], dtype=np.float32)})
            except Unavailable as error:
                if error.reason not in ("stopping", None):  # None: nobody listens any more
                    raise
                return None
            return float(answer["y"][0, 0])

        await call(0.0)
        # One and a half seconds of work: more than the delay.
        early = [asyncio.create_task(call(float(value))) for value in range(30)]
        # All but those that a worker holds at a time wait or are answered: they were admitted.
        while sum(task.done() for task in early) + metric(server, QUEUED) < len(early) - 2:
            await asyncio.sleep(0.01)
        os.kill(server.pid, signal.SIGTERM)
        while await client.server_ready():
            await asyncio.sleep(0.01)
        late = asyncio.create_task(call(99.0))
        assert await asyncio.gather(*early) == [float(value) for value in range(30)]
        assert await late in (99.0, None)
        while alive(server.pid):
            await asyncio.sleep(0.02)
    assert await asyncio.to_thread(server.stop) == 0

"""A worker that is killed under load: the server lives, the worker comes back, nobody hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from worker_processes import alive, workers_of

pytestmark = pytest.mark.e2e

CALLERS = 16
SECONDS = 60.0


async def test_killed_worker_comes_back_and_no_request_hangs(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(slow="instance_group { kind: KIND_CPU count: 2 }")
    answered = 0
    enough = asyncio.Event()

    async def call(client: AsyncClient, value: float) -> None:
        nonlocal answered
        while not enough.is_set():
            x = np.array([[value]], dtype=np.float32)
            result = await client.infer("slow", {"x": x}, timeout=30.0)
            assert result["y"] == value
            answered += 1

    async with AsyncClient(server.grpc_address) as client:
        callers = [asyncio.create_task(call(client, float(i))) for i in range(CALLERS)]
        async with asyncio.timeout(SECONDS):
            while answered < 2 * CALLERS:
                await asyncio.sleep(0.01)
            for pid in workers_of(server.pid):
                os.kill(pid, signal.SIGKILL)
            while metric(server, 'headrace_worker_restarts_total{model="slow",version="1"}') < 2:
                await asyncio.sleep(0.05)
            while metric(server, READY) < 2:
                await asyncio.sleep(0.05)
            after = answered
            while answered < after + 2 * CALLERS:
                await asyncio.sleep(0.01)
            enough.set()
            await asyncio.gather(*callers)
    assert server.stop() == 0


async def test_workers_end_with_a_server_that_is_killed(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(affine="instance_group { kind: KIND_CPU count: 2 }")
    pids = workers_of(server.pid)
    assert len(pids) == 2
    server.kill()
    async with asyncio.timeout(SECONDS):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.02)


READY = 'headrace_workers{model="slow",state="ready",version="1"}'

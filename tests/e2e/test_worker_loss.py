"""A worker that is killed under load: the server lives, the worker comes back, nobody hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.errors import Unavailable
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from worker_processes import alive, workers_of

pytestmark = pytest.mark.e2e

CALLERS = 16
SECONDS = 60.0
READY = 'headrace_workers{model="slow",state="ready",version="1"}'
RESTARTS = 'headrace_worker_restarts_total{model="slow",version="1"}'


async def test_killed_workers_come_back_and_no_request_hangs(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(slow="instance_group { kind: KIND_CPU count: 2 }")
    answered, told = 0, list[str | None]()
    enough = asyncio.Event()

    async def call(client: AsyncClient, value: float) -> None:
        nonlocal answered
        while not enough.is_set():
            x = np.array([[value]], dtype=np.float32)
            try:
                result = await client.infer("slow", {"x": x}, timeout=30.0)
            except Unavailable as error:
                told.append(error.reason)
            else:
                assert result["y"] == value
                answered += 1

    async def more_answers() -> None:
        before = answered
        while answered < before + 2 * CALLERS:
            await asyncio.sleep(0.01)

    async def replaced(restarts: int) -> None:
        while metric(server, RESTARTS) < restarts or metric(server, READY) < 2:
            await asyncio.sleep(0.05)

    async with AsyncClient(server.grpc_address) as client:
        callers = [asyncio.create_task(call(client, float(i))) for i in range(CALLERS)]
        async with asyncio.timeout(SECONDS):
            await more_answers()
            one, other = workers_of(server.pid)
            os.kill(one, signal.SIGKILL)
            await replaced(1)
            await more_answers()
            assert told == [], "what one worker had is answered by the other"
            for pid in workers_of(server.pid):
                os.kill(pid, signal.SIGKILL)
            await replaced(3)
            await more_answers()
            # Whose second worker was killed as well is told so, once.
            assert {*told} <= {"worker_lost"}
            assert len(told) <= CALLERS
            assert not alive(other)
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

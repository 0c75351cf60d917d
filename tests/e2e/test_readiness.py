"""Whoever asks whether a server is ready, and however, is told the same, and it is true."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.aio import AsyncClient
from headrace.errors import Unavailable
from headrace.retry import RetryPolicy
from headrace_server.testing import ServerProcess
from worker_processes import workers_of
from written_models import write_model

pytestmark = pytest.mark.e2e

SECONDS = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
ONCE = RetryPolicy(max_attempts=1)

# Loads as soon as a file is there.
WAITING = """
    import time
    from pathlib import Path
    from headrace_server import Model, TensorSpec

    class Waiting(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def load(self, context):
            while not Path(context.parameters["leave"]).exists():
                time.sleep(0.01)

        def forward(self, x):
            return x
"""


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port: int = any_port.getsockname()[1]
    return port


class Asked:
    """One server, asked in every way there is."""

    def __init__(
        self,
        client: AsyncClient,
        channel: grpc.aio.Channel,
        metrics_port: int,
        http_port: int,
    ) -> None:
        self.client = client
        self._health = health_pb2_grpc.HealthStub(channel)
        self._urls = [f"http://127.0.0.1:{port}/v2/" for port in (metrics_port, http_port)]

    async def healthy(self, service: str) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        return bool((await self._health.Check(request)).status == SERVING)

    async def http(self, path: str) -> bool:
        """What both ports that speak HTTP say."""

        def ask(url: str) -> int:
            try:
                with urllib.request.urlopen(url + path, timeout=SECONDS) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        status, other = [await asyncio.to_thread(ask, url) for url in self._urls]
        assert status in (200, 503)
        assert status == other
        return status == 200

    async def readiness(self) -> set[bool]:
        """What is said of the server and of its only model: one answer if all agree."""
        return {
            await self.client.server_ready(),
            await self.client.model_ready("waiting"),
            await self.client.model_ready("waiting", "1"),
            await self.healthy(""),
            await self.healthy("inference.GRPCInferenceService"),
            await self.healthy("waiting"),
            await self.http("health/ready"),
            await self.http("models/waiting/ready"),
            await self.http("models/waiting/versions/1/ready"),
        }


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    while True:
        try:
            if await true():
                return
        except (Unavailable, grpc.aio.AioRpcError):
            pass  # it does not listen yet
        await asyncio.sleep(0.01)


async def test_readiness_is_the_same_everywhere_while_it_loads_serves_and_loses_its_worker(
    tmp_path: Path,
) -> None:
    leave = tmp_path / "leave"
    config = f'parameters {{ key: "leave" value {{ string_value: "{leave}" }} }}'
    write_model(tmp_path / "models", "waiting", WAITING, config)
    grpc_port, metrics_port, http_port = (free_port() for _ in range(3))
    address = f"127.0.0.1:{grpc_port}"
    ports = ("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port))
    server = ServerProcess(tmp_path / "models", *ports, "--http-port", str(http_port))
    # It says that it is ready only once it is.
    starting = asyncio.create_task(asyncio.to_thread(server.start))
    try:
        async with (
            asyncio.timeout(SECONDS),
            AsyncClient(address, retry=ONCE, timeout=5.0) as client,
            grpc.aio.insecure_channel(address) as channel,
        ):
            asked = Asked(client, channel, metrics_port, http_port)
            # From the first answer on, and for as long as it loads.
            await until(client.server_live)
            assert not await client.server_ready()
            assert not await asked.healthy("")
            while not any(row.state == "LOADING" for row in await client.index()):
                await asyncio.sleep(0.01)
            assert await asked.readiness() == {False}
            assert await asked.http("health/live")
            assert not await asked.http("models/nobody/ready")
            leave.touch()
            await starting
            assert await asked.readiness() == {True}
            leave.unlink()
            (pid,) = workers_of(server.pid)
            os.kill(pid, signal.SIGKILL)
            while await client.model_ready("waiting"):
                await asyncio.sleep(0.005)
            assert await asked.readiness() == {False}
            assert await client.server_live()
            leave.touch()
            await until(client.server_ready)
            assert await asked.readiness() == {True}
    finally:
        leave.touch()
        await asyncio.gather(starting, return_exceptions=True)
        server.stop()

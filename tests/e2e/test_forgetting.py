"""A model that is loaded again leaves nothing in the front's memory, also not its first load."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from weakref import ref

import pytest

from headrace.aio import AsyncClient
from headrace_server.app import Server
from headrace_server.config import ServerConfig
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from written_models import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = """
    from headrace_server import Model, TensorSpec

    class Same(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]

        def forward(self, x):
            return x
"""


class Deployments(Observer):
    """Remembers every one there was, without keeping it."""

    def __init__(self) -> None:
        self.seen: list[ref[Deployment]] = []

    def deployment_added(self, deployment: Deployment) -> None:
        self.seen.append(ref(deployment))


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """As it was, after a server in this process has changed it."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


async def test_a_deployment_that_ended_is_gone_from_memory(tmp_path: Path) -> None:
    write_model(tmp_path, "same", MODEL)
    config = ServerConfig(
        grpc_port=0, metrics_port=0, model_control_mode="explicit", load_model="*"
    )
    deployments = Deployments()
    server = Server(tmp_path, config, [deployments])
    address = (await server.start()).grpc
    try:
        async with AsyncClient(address) as client:
            for _ in range(2):
                await client.infer("same", {"x": [[1]]}, timeout=300.0)
                await client.load_model("same", timeout=300.0)
            *ended, last = deployments.seen
            async with asyncio.timeout(300):
                while any(deployment() is not None for deployment in ended):
                    await asyncio.sleep(0.05)
            assert len(ended) == 2
            assert last() is not None
    finally:
        await server.stop()

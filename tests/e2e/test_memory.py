"""Memory: nothing stays of a model that is loaded again, of large messages, or of large batches."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
from bench.processes import memory_bytes

from headrace.aio import AsyncClient
from headrace.errors import NotFound
from headrace_server.app import Server
from headrace_server.config import ServerConfig
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from headrace_server.testing import ServerProcess
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


LARGE = """
    from headrace_server import Model, TensorSpec

    class Large(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]

        def forward(self, x):
            b"1" * (256 << 20)
            return x
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc")
async def test_a_worker_keeps_what_batches_need_and_gives_it_back_when_none_come(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, "large", LARGE)
    with ServerProcess(tmp_path) as server:
        before = memory_bytes(server.pid)
        async with AsyncClient(server.grpc_address) as client:
            await client.infer("large", {"x": [[1]]}, timeout=60.0)
        assert memory_bytes(server.pid) - before > 200 << 20
        async with asyncio.timeout(60):
            while memory_bytes(server.pid) - before > 50 << 20:
                await asyncio.sleep(0.05)


HEAP_BYTES = 64 << 20
"""What glibc sets aside for the heap of a thread, at a multiple of that."""


def heaps_of_threads(pid: int) -> int:
    """How many heaps the C library keeps beside the first: a mapping at such a place, and behind it
    what is set aside."""
    found, before = 0, (0, 0, "")
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, mode, _, _, inode, *_ = line.split()
        first, last = (int(address, 16) for address in addresses.split("-"))
        behind = mode == "---p" and inode == "0" and first == before[1]
        found += behind and before[2] == "rw-p" and last - before[0] == HEAP_BYTES
        before = (first, last, mode)
    return found


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc")
async def test_all_threads_of_the_front_share_the_heap_that_is_given_back(tmp_path: Path) -> None:
    async def call(client: AsyncClient) -> None:
        with pytest.raises(NotFound):
            await client.infer("nobody", {"x": np.zeros((1, 1 << 18), np.float32)})

    with ServerProcess(tmp_path) as server:
        before = heaps_of_threads(server.pid)
        async with AsyncClient(server.grpc_address) as client:
            for _ in range(5):
                await asyncio.gather(*(call(client) for _ in range(20)))
        assert heaps_of_threads(server.pid) == before == 0

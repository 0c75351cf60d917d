"""Models that are loaded again, changed and unloaded under load: every answer right, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess
from worker_processes import alive, descriptors_of, workers_of
from written_models import write_version

pytestmark = pytest.mark.e2e

CALLERS = 16
SECONDS = 120.0

TAGGED = """
    import time
    from headrace_server import Model, TensorSpec

    class Tagged(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]
        max_batch_size = 8

        def forward(self, x):
            time.sleep(0.004)
            return x * 100 + TAG
"""
"""Answers with what it was asked, and with a number that tells one load of it from another."""


def write_tagged(repository: Path, version: int, tag: int) -> None:
    write_version(repository, "tagged", version, TAGGED.replace("TAG", str(tag)))


class Load:
    """Closed loops on one model that check every answer; what they were told stays in `tags`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._over = asyncio.Event()
        self.answered = 0
        self.tags: set[int] = set()

    async def call(self, value: int) -> None:
        while not self._over.is_set():
            result = await self._client.infer("tagged", {"x": np.array([[value]])}, timeout=30.0)
            asked, tag = divmod(int(result["y"][0, 0]), 100)
            assert asked == value
            self.tags.add(tag)
            self.answered += 1

    async def more(self, answers: int) -> None:
        """Wait for so many answers more."""
        until = self.answered + answers
        while self.answered < until:
            await asyncio.sleep(0.005)

    async def answers_of(self, tag: int) -> None:
        """Wait until the model with this tag alone answers."""
        while True:
            self.tags.clear()
            await self.more(2 * CALLERS)
            if self.tags == {tag}:
                return

    @classmethod
    @asynccontextmanager
    async def on(cls, server: ServerProcess) -> AsyncIterator[Load]:
        """Callers that call until the block ends, and fail the test with whatever they are told
        that is no right answer: nothing is tried again."""
        from headrace import RetryPolicy

        async with (
            asyncio.timeout(SECONDS),
            AsyncClient(server.grpc_address, retry=RetryPolicy(max_attempts=1)) as client,
            asyncio.TaskGroup() as callers,
        ):
            load = cls(client)
            for value in range(CALLERS):
                callers.create_task(load.call(value))
            await load.more(CALLERS)
            try:
                yield load
            finally:
                load._over.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def explicit(tmp_path: Path) -> ServerProcess:
    write_tagged(tmp_path, 1, 0)
    return ServerProcess(tmp_path, "--model-control-mode", "explicit", "--load-model", "*")


async def test_ten_reloads_under_load_lose_no_request_and_leave_nothing_behind(
    explicit: ServerProcess, tmp_path: Path
) -> None:
    with explicit as server:
        async with Load.on(server) as load, AsyncClient(server.grpc_address) as client:
            workers, before = workers_of(server.pid), descriptors_of(server.pid)
            for tag in range(1, 11):
                write_tagged(tmp_path, 1, tag)
                await client.load_model("tagged", timeout=60.0)
                assert await client.model_ready("tagged")
                assert await client.server_ready()
                await load.answers_of(tag)
            await until(lambda: len(workers_of(server.pid)) == len(workers))
            assert not {*workers} & {*workers_of(server.pid)}
            assert not any(alive(pid) for pid in workers)
            await until(lambda: descriptors_of(server.pid) == before)
    assert server.stop() == 0

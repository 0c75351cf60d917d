"""Models that are loaded again, changed and unloaded under load: every answer right, none lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from command_line import headrace, refusal
from headrace import RetryPolicy
from headrace.aio import AsyncClient
from headrace.errors import InvalidRequest, NotFound, Unavailable
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from worker_processes import alive, descriptors_of, slabs_of, workers_of
from written_models import write_version

# Ten times over a worker imports torch; on a machine that others use, too, that takes a while.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXPLICIT = ("--model-control-mode", "explicit")
POLL = ("--model-control-mode", "poll", "--repository-poll", "0.3")
ONCE = RetryPolicy(max_attempts=1)
READY = 'headrace_workers{model="tagged",state="ready",version="1"}'
SERVING = health_pb2.HealthCheckResponse.SERVING
CALLERS = 16
SECONDS = 500.0

TAGGED = """
    import time
    from headrace_server import Model, TensorSpec

    class Tagged(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]
        max_batch_size = 8

        def forward(self, x):
            time.sleep(0.01)
            return x * 100 + TAG
"""
"""Answers with what it was asked, and with a number that tells one load of it from another."""


def write_tagged(repository: Path, version: int, tag: int) -> None:
    write_version(repository, "tagged", version, TAGGED.replace("TAG", str(tag)))


def write_config(repository: Path, text: str) -> None:
    (repository / "tagged" / "config.pbtxt").write_text(text)


def metrics_text(server: ServerProcess) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        return str(response.read().decode())


async def connection_of(client: AsyncClient) -> None:
    """Wait until there is one: on a busy machine connecting alone may take longer than gRPC waits,
    and these callers try nothing again."""
    while True:
        with suppress(Unavailable):
            await client.server_live()
            return


@asynccontextmanager
async def health_of(server: ServerProcess) -> AsyncIterator[dict[str, list[int]]]:
    """What the health service says of the server and of the model, from now on, change by change;
    there is something said when the block begins."""
    told: dict[str, list[int]] = {"": [], "tagged": []}
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def listen(service: str) -> None:
            async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=service)):
                told[service].append(answer.status)

        listening = [asyncio.create_task(listen(service)) for service in told]
        await until(lambda: all(told.values()))
        yield told
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


class Load:
    """Closed loops on one model that check every answer, half of them over shared streams; what
    they were told stays in `tags`."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self.answered = 0
        self.tags: set[int] = set()

    async def call(self, client: AsyncClient, value: int) -> None:
        while not self._over.is_set():
            result = await client.infer("tagged", {"x": np.array([[value]])}, timeout=30.0)
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
        async with (
            asyncio.timeout(SECONDS),
            AsyncClient(server.grpc_address, retry=ONCE) as client,
            AsyncClient(server.grpc_address, retry=ONCE, multiplex=True) as multiplexing,
            asyncio.TaskGroup() as callers,
        ):
            await connection_of(client)
            await connection_of(multiplexing)
            load = cls()
            for value in range(CALLERS):
                callers.create_task(load.call(multiplexing if value % 2 else client, value))
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
    return ServerProcess(tmp_path, *EXPLICIT, "--load-model", "*")


async def test_ten_reloads_under_load_lose_no_request_and_leave_nothing_behind(
    explicit: ServerProcess, tmp_path: Path
) -> None:
    with explicit as server:
        async with (
            Load.on(server) as load,
            AsyncClient(server.grpc_address) as client,
            health_of(server) as told,
        ):
            workers = workers_of(server.pid)
            before = descriptors_of(server.pid), slabs_of(server.pid)
            for tag in range(1, 11):
                write_tagged(tmp_path, 1, tag)
                await client.load_model("tagged", timeout=60.0)
                assert await client.model_ready("tagged")
                assert await client.server_ready()
                await load.answers_of(tag)
            await until(lambda: len(workers_of(server.pid)) == len(workers))
            assert not {*workers} & {*workers_of(server.pid)}
            assert not any(alive(pid) for pid in workers)
            await until(lambda: (descriptors_of(server.pid), slabs_of(server.pid)) == before)
            assert told == {"": [SERVING], "tagged": [SERVING]}, "not ready for a moment"
    assert server.stop() == 0


async def test_the_number_of_workers_changes_in_place_under_load(
    explicit: ServerProcess, tmp_path: Path
) -> None:
    with explicit as server:
        async with Load.on(server) as load, AsyncClient(server.grpc_address) as client:
            (first,) = workers_of(server.pid)
            for count in (3, 1):
                write_config(tmp_path, f"instance_group {{ kind: KIND_CPU count: {count} }}")
                await client.load_model("tagged", timeout=60.0)
                await load.more(2 * CALLERS)
                await until(lambda count=count: len(workers_of(server.pid)) == count)
                assert first in workers_of(server.pid), "it was loaded again"
                assert metric(server, READY) == count
                config = await client.model_config("tagged")
                assert config.instance_group[0].count == count
            answered = load.answered  # more will be, before the reply has come
            (statistics,) = await client.statistics("tagged")
            assert statistics.success.count >= answered, "it does not count anew"


async def test_a_worker_that_would_load_other_files_does_not_start(
    explicit: ServerProcess, tmp_path: Path
) -> None:
    """What a model writes beside itself is no change; what somebody writes over it is one."""
    writes = """
        def load(self, context):
            (context.directory / "written").write_text("by each worker")
    """
    refused = "model.py changed since the model was loaded"
    write_version(tmp_path, "tagged", 1, TAGGED.replace("TAG", "0") + writes)
    write_config(tmp_path, "instance_group { kind: KIND_CPU count: 2 }")
    with explicit as server:
        async with Load.on(server) as load, AsyncClient(server.grpc_address) as client:
            stays, killed = workers_of(server.pid)
            write_version(tmp_path, "tagged", 1, TAGGED.replace("TAG", "1") + writes)
            os.kill(killed, signal.SIGKILL)
            await until(lambda: any(refused in line for line in server.log))
            await load.more(2 * CALLERS)
            assert load.tags == {0}
            assert workers_of(server.pid) == [stays]
            await client.load_model("tagged", timeout=60.0)
            await load.answers_of(1)
            await until(lambda: stays not in workers_of(server.pid))
            assert len(workers_of(server.pid)) == 2
        # With nobody left who could answer otherwise, something is better than nothing.
        write_version(tmp_path, "tagged", 1, TAGGED.replace("TAG", "2") + writes)
        for pid in workers_of(server.pid):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: any("it counts now" in line for line in server.log))
        async with AsyncClient(server.grpc_address) as client, asyncio.timeout(SECONDS):
            while not await client.model_ready("tagged"):
                await asyncio.sleep(0.02)
            assert (await client.infer("tagged", {"x": [[3]]}, timeout=60.0))["y"] == 302


async def test_workers_that_cannot_all_be_had_leave_nothing_to_those_that_came(
    explicit: ServerProcess, tmp_path: Path
) -> None:
    """One of two more is ready, and has batches, before the other one fails."""
    third = """
        def load(self, context):
            from pathlib import Path
            loads = Path(context.directory).parent / "loads"
            with loads.open("a+") as file:
                file.write("once\\n")
                file.flush()
                file.seek(0)
                if len(file.readlines()) == 3:
                    time.sleep(2.0)
                    raise ValueError("no room for a third")
    """
    code = TAGGED.replace("TAG", "0") + third
    write_version(tmp_path, "tagged", 1, code)
    with explicit as server:
        async with Load.on(server) as load, AsyncClient(server.grpc_address) as client:
            write_config(tmp_path, "instance_group { kind: KIND_CPU count: 3 }")
            with pytest.raises(InvalidRequest, match="no room for a third"):
                await client.load_model("tagged", timeout=60.0)
            await load.more(10 * CALLERS)
            await until(lambda: len(workers_of(server.pid)) == 1)
            assert metric(server, READY) == 1
        assert not [line for line in server.log if "Traceback" in line or "hangs" in line]


async def test_a_load_that_fails_leaves_the_old_one_serving(
    explicit: ServerProcess, tmp_path: Path
) -> None:
    with explicit as server:
        async with Load.on(server) as load, AsyncClient(server.grpc_address) as client:
            workers = workers_of(server.pid)
            write_version(tmp_path, "tagged", 1, "raise ValueError('not today')")
            with pytest.raises(InvalidRequest, match=r"load failed for model 'tagged'.*not today"):
                await client.load_model("tagged", timeout=60.0)
            write_config(tmp_path, "max_batch_sise: 3")
            with pytest.raises(InvalidRequest, match="unknown field 'max_batch_sise'"):
                await client.load_model("tagged", timeout=60.0)
            with pytest.raises(NotFound, match="failed to load 'nobody', failed to poll"):
                await client.load_model("nobody")
            assert [row.state for row in await client.index()] == ["READY"]
            assert await client.server_ready()
            await load.more(CALLERS)
            assert load.tags == {0}
            assert workers_of(server.pid) == workers


async def test_an_unloaded_model_answers_what_it_admitted_and_gives_all_back(
    explicit: ServerProcess,
) -> None:
    with explicit as server:
        async with AsyncClient(server.grpc_address, retry=ONCE) as client:
            await connection_of(client)
            before = descriptors_of(server.pid)
            load = Load()
            callers = [asyncio.create_task(load.call(client, value)) for value in range(CALLERS)]
            await load.more(CALLERS)
            assert slabs_of(server.pid)
            await client.unload_model("tagged")
            told = await asyncio.gather(*callers, return_exceptions=True)
            assert all("'tagged' has no available versions" in str(error) for error in told)
            assert all(isinstance(error, Unavailable) for error in told), "an admitted one was lost"
            await until(lambda: not workers_of(server.pid))
            # The server hears of their end a moment after it.
            async with asyncio.timeout(10):
                while (row := (await client.index())[0]).state == "UNLOADING":
                    await asyncio.sleep(0.01)
            assert (row.version, row.state, row.reason) == ("1", "UNAVAILABLE", "unloaded")
            assert not await client.model_ready("tagged")
            assert await client.server_ready(), "nobody wants that model any more"
            assert slabs_of(server.pid) == 0
            assert descriptors_of(server.pid)["socket"] < before["socket"]
            assert READY not in metrics_text(server)
            await client.unload_model("tagged")
            await client.load_model("tagged", config={"max_batch_size": 4}, timeout=60.0)
            assert (await client.model_config("tagged")).max_batch_size == 4
            assert (await client.infer("tagged", {"x": [[3]]}))["y"] == 300


async def test_a_model_that_nobody_asked_for_is_not_loaded(
    tmp_path: Path, explicit: ServerProcess
) -> None:
    write_version(tmp_path, "other", 1, TAGGED.replace("TAG", "5"))
    with ServerProcess(tmp_path, *EXPLICIT, "--load-model", "other") as server:
        async with AsyncClient(server.grpc_address, retry=ONCE) as client:
            rows = [(row.name, row.version, row.state) for row in await client.index()]
            assert rows == [("other", "1", "READY"), ("tagged", "", "")]
            with pytest.raises(NotFound, match="unknown model: 'tagged' is not found"):
                await client.infer("tagged", {"x": np.array([[1]])})
            assert await client.server_ready()
            assert len(workers_of(server.pid)) == 1
            there = ("--address", server.grpc_address)
            assert headrace("load", "tagged", *there).returncode == 0
            assert await client.model_ready("tagged")
            assert headrace("unload", "tagged", *there).returncode == 0
            assert not await client.model_ready("tagged")
            config = tmp_path / "config.json"
            config.write_text('{"max_batch_sise": 3}')
            told = refusal(1, "load", "tagged", "--config", str(config), *there)
            assert "unknown field 'max_batch_sise'" in told
            assert "cannot read" in refusal(2, "load", "tagged", "--config", "nowhere", *there)


async def test_a_version_dropped_in_is_served_by_itself(tmp_path: Path) -> None:
    write_tagged(tmp_path, 1, 1)
    with ServerProcess(
        tmp_path, "--model-control-mode", "poll", "--repository-poll", "0.3"
    ) as server:
        async with Load.on(server) as load, AsyncClient(server.grpc_address) as client:
            (first,) = workers_of(server.pid)
            write_tagged(tmp_path, 2, 2)
            await load.answers_of(2)
            await until(lambda: not alive(first))
            # Its process is gone a moment before the server says so.
            async with asyncio.timeout(SECONDS):
                while {row.version: row.state for row in await client.index()} != {
                    "1": "UNAVAILABLE",
                    "2": "READY",
                }:
                    await asyncio.sleep(0.05)
            (second,) = workers_of(server.pid)
            write_config(tmp_path, "version_policy { all {} }")
            await until(lambda: len(workers_of(server.pid)) == 2 and not alive(second))
            async with asyncio.timeout(SECONDS):
                while not await client.model_ready("tagged", "1"):
                    await asyncio.sleep(0.05)
            await load.answers_of(2)
            with pytest.raises(Unavailable, match="explicit model load / unload is not allowed"):
                await client.load_model("tagged")
        shutil.rmtree(tmp_path / "tagged")
        await until(lambda: not workers_of(server.pid))
        assert server.stop() == 0

"""Every fault of `examples/faults` among good requests on real workers: it harms nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.answers import InferResult
from headrace.errors import InternalError, ServerError, Unavailable
from headrace_server.core.watchdog import LEAST_S
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from worker_processes import alive, workers_of
from written_models import write_model

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2] / "examples" / "faults"
GOOD = 40
SECONDS = 60.0
TWO_WORKERS = "instance_group { kind: KIND_CPU count: 2 }"

SHORT_OF_MEMORY = """
    import torch
    from headrace_server import Model, TensorSpec

    class Doubler(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]
        max_batch_size = 16

        def forward(self, x):
            if len(x) > 3 and x.any():  # not while it is loaded and tried out
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 2 * x
"""

HANGS_AFTER_A_SECOND = 'parameters { key: "hang_timeout_s" value { string_value: "1" } }'
HANGS_IN_PREPARE = """
    import time
    import torch
    from headrace_server import Model, TensorSpec

    class Dreamer(Model):
        inputs = [TensorSpec("text", "BYTES", [1])]
        prepared = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def prepare(self, text):
            if text[0, 0] == b"hang":
                time.sleep(1e9)
            return torch.tensor([[float(len(text[0, 0]))]])

        def forward(self, x):
            return x
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Serve `examples/faults` with these flags; `config` is the model's config.pbtxt."""
    started: list[ServerProcess] = []

    def start(*flags: str, config: str = "") -> ServerProcess:
        shutil.copytree(REPOSITORY, tmp_path / "faults")
        (tmp_path / "faults/faulty/config.pbtxt").write_text(config)
        started.append(ServerProcess(tmp_path / "faults", *flags).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`examples/faults` with two workers, for tests that do not mind what others did to them."""
    repository = tmp_path_factory.mktemp("faults") / "faults"
    shutil.copytree(REPOSITORY, repository)
    (repository / "faulty/config.pbtxt").write_text(TWO_WORKERS)
    with ServerProcess(repository) as server:
        yield server


def ask(client: AsyncClient, value: float, **parameters: str | int) -> Awaitable[InferResult]:
    x = np.array([[value]], np.float32)
    return client.infer("faulty", {"x": x}, parameters=parameters, timeout=SECONDS)


async def among_good_ones(
    client: AsyncClient, fault: str
) -> tuple[InferResult | ServerError, float]:
    """Send one request with this fault amid good ones; returns its result and the seconds until
    all were answered. Asserts that each good one got its own answer."""
    began_s = time.monotonic()
    calls = [ask(client, float(i)) for i in range(GOOD)]
    calls.insert(GOOD // 2, ask(client, -1.0, fault=fault))
    results = await asyncio.gather(*calls, return_exceptions=True)
    took_s = time.monotonic() - began_s
    result = results.pop(GOOD // 2)
    for i, good in enumerate(results):
        assert not isinstance(good, BaseException), f"{fault}: {good!r}"
        assert good["y"] == 2 * i
    assert isinstance(result, InferResult | ServerError), repr(result)
    return result, took_s


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "faults", [("exit", "kill"), ("segfault", "babble"), ("hang",), ("spin",)], ids="-".join
)
async def test_whoever_takes_the_worker_along_fails_alone(
    two_workers: ServerProcess, faults: tuple[str, ...]
) -> None:
    async with AsyncClient(two_workers.grpc_address) as client:
        await asyncio.gather(*(ask(client, float(i)) for i in range(GOOD)))
        for fault in faults:
            result, took_s = await among_good_ones(client, fault)
            assert isinstance(result, Unavailable)
            assert result.reason == "worker_lost"
            assert took_s >= LEAST_S or fault not in ("hang", "spin")
            print(f"{fault}: all answered after {took_s:.2f} s")
        await until(lambda: client.model_ready("faulty"))


async def test_whoever_fails_the_model_fails_alone_and_costs_no_worker(
    two_workers: ServerProcess,
) -> None:
    async with AsyncClient(two_workers.grpc_address) as client:
        await until(lambda: all_live(two_workers))
        before = workers_of(two_workers.pid)
        for fault in ("raise", "wrong_shape", "wrong_count", "unheard of"):
            result, _ = await among_good_ones(client, fault)
            assert isinstance(result, InternalError), fault
            assert result.reason == "model_failed"
        result, _ = await among_good_ones(client, "out_of_memory")
        assert isinstance(result, Unavailable)
        assert (result.reason, result.code) == ("out_of_memory", grpc.StatusCode.RESOURCE_EXHAUSTED)
        for fault in ("slow", "leak"):
            result, _ = await among_good_ones(client, fault)
            assert isinstance(result, InferResult), fault
            assert result["y"] == -2.0
        result, _ = await among_good_ones(client, "nan")
        assert isinstance(result, InferResult)
        assert np.isnan(result["y"]).all()
        assert await client.model_ready("faulty")
    assert workers_of(two_workers.pid) == before


async def test_the_next_answer_comes_once_another_worker_has_loaded(
    start: Callable[..., ServerProcess],
) -> None:
    server = start()
    async with AsyncClient(server.grpc_address) as client:
        (pid,) = workers_of(server.pid)
        await ask(client, 1.0)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        waiting = asyncio.ensure_future(ask(client, 2.0))
        await until(lambda: gone(client))
        (model,) = await client.index()
        assert model.state == "UNAVAILABLE"
        assert "its last worker was lost" in model.reason
        assert (await waiting)["y"] == 4.0
        took_s = time.monotonic() - killed_s
        load_s = logged_at(server, "is ready again") - logged_at(server, "starting it again now")
        print(f"SIGKILL to the next answer: {took_s:.3f} s, {load_s:.3f} s of them loading")
        assert await client.model_ready("faulty")
        (model,) = await client.index()
        assert (model.state, model.reason) == ("READY", "")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing, on Linux alone")
async def test_a_worker_that_hangs_ends_with_a_server_that_is_killed(
    start: Callable[..., ServerProcess],
) -> None:
    server = start(config=TWO_WORKERS)
    async with AsyncClient(server.grpc_address) as client:
        pids = workers_of(server.pid)
        assert len(pids) == 2
        waiting = []
        # One for each worker, which runs it before the other one comes.
        for number, fault in enumerate(("hang", "spin"), start=1):
            waiting.append(asyncio.ensure_future(ask(client, 1.0, fault=fault)))
            while metric(server, DISPATCHED) < number:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(server.kill)
        async with asyncio.timeout(SECONDS):
            while any(alive(pid) for pid in pids):
                await asyncio.sleep(0.02)
        for call in waiting:
            call.cancel()


DISPATCHED = 'headrace_dispatches_total{model="faulty",reason="immediate",version="1"}'
READY = 'headrace_workers{model="faulty",state="ready",version="1"}'


async def all_live(server: ServerProcess) -> bool:
    return await asyncio.to_thread(metric, server, READY) == 2


def logged_at(server: ServerProcess, text: str) -> float:
    """The moment of the line with this text, in seconds since the epoch."""
    line = next(line for line in server.log if text in line)
    return datetime.fromisoformat(json.loads(line)["time"]).timestamp()


async def gone(client: AsyncClient) -> bool:
    return not await client.model_ready("faulty")


async def test_a_prepare_that_hangs_fails_alone(tmp_path: Path) -> None:
    write_model(tmp_path, "dreamer", HANGS_IN_PREPARE, HANGS_AFTER_A_SECOND)
    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address) as client:
            results = await asyncio.gather(
                *(
                    client.infer("dreamer", {"text": [[text]]}, timeout=SECONDS)
                    for text in ("a", "hang", "bc", "d")
                ),
                return_exceptions=True,
            )
    hung = results.pop(1)
    assert isinstance(hung, Unavailable)
    assert hung.reason == "worker_lost"
    lengths = [result["y"].item() for result in results if not isinstance(result, BaseException)]
    assert lengths == [1.0, 2.0, 1.0]


async def test_a_model_that_cannot_be_loaded_again_comes_back_by_itself_once_it_can(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start()
    switch = tmp_path / "faults/faulty/1/exit_on_load"
    async with AsyncClient(server.grpc_address) as client:
        await ask(client, 1.0)
        switch.touch()
        (pid,) = workers_of(server.pid)
        os.kill(pid, signal.SIGKILL)
        waiting = asyncio.ensure_future(ask(client, 2.0))

        async def says_why() -> bool:
            (model,) = await client.index()
            return "exited with status 3" in model.reason

        await until(says_why)
        assert not await client.model_ready("faulty")
        assert not await client.server_ready()
        switch.unlink()
        assert (await waiting)["y"] == 4.0
        assert await client.server_ready()


async def test_a_model_that_hangs_while_it_loads_is_given_up(
    start: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    shutil.copytree(REPOSITORY / "faulty", tmp_path / "faults/stuck")
    (tmp_path / "faults/stuck/1/hang_on_load").touch()
    with ServerProcess(tmp_path / "faults", "--load-timeout", "5") as server:
        async with AsyncClient(server.grpc_address) as client:
            (model,) = await client.index()
    assert model.state == "UNAVAILABLE"
    assert "within 5 s (--load-timeout)" in model.reason


async def test_batches_too_large_for_the_memory_are_made_smaller(tmp_path: Path) -> None:
    write_model(tmp_path, "doubler", SHORT_OF_MEMORY)
    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address) as client:
            for _ in range(3):
                values = [np.array([[float(i)]], np.float32) for i in range(GOOD)]
                results = await asyncio.gather(
                    *(client.infer("doubler", {"x": x}, timeout=SECONDS) for x in values)
                )
                for x, result in zip(values, results, strict=True):
                    assert result["y"] == 2 * x

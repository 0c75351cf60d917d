"""Models that do what nobody expects of one: each is told what it did, and costs nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.errors import ServerError
from headrace_server.testing import ServerProcess
from worker_processes import alive, command_of, workers_of
from written_models import write_model

pytestmark = pytest.mark.e2e

SECONDS = 60.0
ONE = {"x": np.ones((1, 1), np.float32)}

HEADER = """
    import logging
    import multiprocessing
    import subprocess
    import sys
    import time
    from headrace_server import Model, TensorSpec

    class Unruly(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def forward(self, x):
            return x
"""

EXITS = """
        def load(self, context):
            sys.exit("weights are missing")
"""

UNSPEAKABLE = """
        def forward(self, x):
            class Unspeakable(RuntimeError):
                def __str__(self):
                    raise ValueError("no words")

            raise Unspeakable
"""

MISFORMATS = """
        def load(self, context):
            self.forward(None)

        def forward(self, x):
            logging.getLogger("library").warning("%d rows", "two")
            return x
"""

EMPLOYS = """
        def load(self, context):
            self.told = context.directory / "told"
            self.forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(99,))
            self.forked.start()
            self.executed = subprocess.Popen(["sleep", "99"])

        def unload(self):
            self.forked.terminate()
            self.executed.terminate()
            self.forked.join()
            self.told.write_text(f"{self.forked.exitcode} {self.executed.wait()}")
"""

LEAVES_BEHIND = """
        def load(self, context):
            self.left = subprocess.Popen(["sleep", "999"])

        def forward(self, x):
            return x * 0 + self.left.pid
"""

MODELS = {
    "exits": EXITS,
    "unspeakable": UNSPEAKABLE,
    "misformats": MISFORMATS,
    "employs": EMPLOYS,
    "leaves_behind": LEAVES_BEHIND,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unruly")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    for name, methods in MODELS.items():
        write_model(repository, name, HEADER + methods)
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with ServerProcess(repository, *explicit, "--cache-dir", "none") as started:
        yield started


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.grpc_address) as connected:
        yield connected


def logged(server: ServerProcess, text: str) -> bool:
    return any(text in line for line in server.log)


async def test_one_that_exits_while_it_loads_is_asked_once(
    server: ServerProcess, client: AsyncClient
) -> None:
    reasons = {model.name: model.reason for model in await client.index()}
    assert reasons["exits"] == "SystemExit: weights are missing"
    assert logged(server, "the model could not be loaded:")
    assert not logged(server, "model 'exits' killed")


async def test_an_exception_without_a_text_costs_its_batch_alone(
    server: ServerProcess, client: AsyncClient
) -> None:
    """Also when it is raised in the warm-up."""
    for _ in range(2):
        with pytest.raises(ServerError, match="failed to run this request"):
            await client.infer("unspeakable", ONE)
    assert logged(server, "Unspeakable: (its text cannot be had: ValueError)")
    assert not logged(server, "worker 0 of model 'unspeakable' exited")


async def test_a_wrong_call_of_logging_costs_no_request(
    server: ServerProcess, client: AsyncClient
) -> None:
    np.testing.assert_array_equal((await client.infer("misformats", ONE))["y"], ONE["x"])
    assert logged(server, "--- Logging error ---")


async def test_what_a_model_starts_ends_when_the_model_says_so(
    repository: Path, server: ServerProcess, client: AsyncClient
) -> None:
    """SIGTERM ends it, though not the worker."""
    worker = worker_of(server, "employs")
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    np.testing.assert_array_equal((await client.infer("employs", ONE))["y"], ONE["x"])
    await client.unload_model("employs")
    await until(lambda: not alive(worker))
    assert (repository / "employs" / "1" / "told").read_text() == "-15 -15"


async def test_what_a_model_starts_ends_with_its_worker(
    server: ServerProcess, client: AsyncClient
) -> None:
    """Be that killed, or told to end."""

    async def left() -> int:
        return int((await client.infer("leaves_behind", ONE))["y"][0, 0])

    first = await left()
    assert alive(first)
    os.kill(worker_of(server, "leaves_behind"), signal.SIGKILL)
    second = await left()
    assert second != first
    await until(lambda: not alive(first))
    await client.unload_model("leaves_behind")
    await until(lambda: not alive(second))


def worker_of(server: ServerProcess, model: str) -> int:
    (worker,) = (pid for pid in workers_of(server.pid) if f"{model}/1#" in command_of(pid))
    return worker


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.02)

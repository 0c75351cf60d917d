"""A model's flood or crash loop beside another model, a tenant's flood beside another tenant."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.answers import InferResult
from headrace.errors import ServerError, Unavailable
from headrace.retry import RetryPolicy
from headrace_server.testing import ServerProcess
from headrace_server.transport.tenants import hash_of
from reading_metrics import metric
from worker_processes import workers_of
from written_models import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

ONCE = RetryPolicy(max_attempts=1)
BATCH_S = 0.5
FAULTS = Path(__file__).parents[2] / "examples" / "faults" / "faulty"

SLOW = f"""
    import time
    from headrace_server import Model, TensorSpec

    class Slow(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]
        max_batch_size = 4

        def forward(self, x):
            time.sleep({BATCH_S})
            return x
"""
QUICK = """
    from headrace_server import Model, TensorSpec

    class Quick(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def forward(self, x):
            return 3 * x + 1
"""


def x(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value]], np.float32)}


async def ask_quick(client: AsyncClient, count: int) -> list[float]:
    """Ask the quick model one by one, and check each answer; returns the server's own times of
    queue and worker, in seconds."""
    seconds = []
    for value in range(count):
        result = await client.infer("quick", x(value), parameters={"headrace_timing": True})
        assert result["y"] == 3 * value + 1
        assert result.timing is not None
        seconds.append(result.timing.server_s)
    return seconds


@asynccontextmanager
async def flood(
    address: str, model: str, callers: int, token: str = ""
) -> AsyncIterator[list[ServerError]]:
    """Callers who ask again at once, whatever they are told; yields the refusals so far."""
    refused: list[ServerError] = []
    async with AsyncClient(address, retry=ONCE, multiplex=True, token=token) as client:

        async def call_on() -> None:
            while True:
                try:
                    await client.infer(model, x(1.0))
                except ServerError as error:
                    refused.append(error)

        tasks = [asyncio.create_task(call_on()) for _ in range(callers)]
        try:
            yield refused
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(100.0):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_flood_on_one_model_fills_its_own_queue_and_delays_no_other(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, "slow", SLOW)
    write_model(tmp_path, "quick", QUICK)
    with ServerProcess(tmp_path, "--max-queue-requests", "40") as server:
        async with AsyncClient(server.grpc_address, retry=ONCE, timeout=100.0) as client:
            # The queue takes 40 and the worker two batches of 4: with no more callers than that
            # nobody is refused once the worker has its share.
            async with flood(server.grpc_address, "slow", callers=60) as refused:
                await until(lambda: len(refused) > 100)
                seconds = await ask_quick(client, 50)
                queued = metric(server, 'headrace_queue_requests{model="slow",version="1"}')
            assert queued > 20
            assert {error.reason for error in refused} == {"queue_full"}
            # Waiting behind a batch of the other model would show; a busy machine does not.
            assert statistics.median(seconds) < BATCH_S / 10


async def test_a_crash_loop_of_one_model_delays_no_other_and_is_paced(tmp_path: Path) -> None:
    shutil.copytree(FAULTS, tmp_path / "faulty")
    write_model(tmp_path, "quick", QUICK)
    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address, retry=ONCE, timeout=100.0) as client:
            (tmp_path / "faulty/1/exit_on_load").touch()
            os.kill(worker_of(server, "faulty"), signal.SIGKILL)
            seconds: list[float] = []
            while not (delays := [line for line in server.log if "again in" in line]):
                seconds += await ask_quick(client, 20)
            # The first restart came at once, the second one waits.
            assert "starting it again in 0.2 s" in delays[0]
            assert statistics.median(seconds) < 0.25
            assert await client.model_ready("quick")
            assert not await client.model_ready("faulty")


def worker_of(server: ServerProcess, model: str) -> int:
    """The process id of a model's only worker, which has the model's name on its command line."""
    (found,) = (
        pid
        for pid in workers_of(server.pid)
        if f"{model}/1#0" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    )
    return found


async def test_requests_that_kill_their_workers_again_and_again_harm_no_other_model(
    tmp_path: Path,
) -> None:
    shutil.copytree(FAULTS, tmp_path / "faulty")
    write_model(tmp_path, "quick", QUICK)
    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address, retry=ONCE, timeout=100.0) as client:
            poison = asyncio.create_task(
                client.infer("faulty", x(1.0), parameters={"fault": "exit"})
            )
            seconds: list[float] = []
            while not poison.done():
                seconds += await ask_quick(client, 20)
            with pytest.raises(Unavailable) as lost:
                await poison
            assert lost.value.reason == "worker_lost"
            assert statistics.median(seconds) < 0.25
            after: InferResult = await client.infer("faulty", x(2.0))
            assert after["y"] == 4.0


async def test_a_flood_of_one_tenant_neither_refuses_nor_outwaits_another(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "slow", SLOW)
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "".join(
            f'[tenants.{name}]\ntokens = ["{hash_of(name)}"]\nmodels = ["*"]\n'
            for name in ("loud", "quiet")
        )
    )
    flags = ("--tokens", str(tokens), "--max-queue-requests", "100")
    with ServerProcess(tmp_path / "models", *flags) as server:
        address = server.grpc_address
        async with (
            AsyncClient(address, retry=ONCE, timeout=100.0, token="quiet") as client,
            flood(address, "slow", callers=130, token="loud") as refused,
        ):
            await until(lambda: len(refused) > 50)
            waited = []
            for _ in range(4):
                asked = {"headrace_timing": True}
                result = await client.infer("slow", x(1.0), parameters=asked)
                assert result.timing is not None
                waited.append(result.timing.queue_s)
    # What the loud one sent takes 25 batches; one runs, one is staged, and then it is our turn.
    assert statistics.median(waited) < 5 * BATCH_S

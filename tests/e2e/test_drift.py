"""A model that becomes ten times as slow while it serves, and as fast as before after a while."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.errors import Unavailable
from headrace.retry import RetryPolicy
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from written_models import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

QUICK_S = 0.008
FACTOR = 10
CALLERS = 8

# Slow as long as a file is there.
MOODY = f"""
    import time
    from pathlib import Path
    from headrace_server import Model, TensorSpec

    class Moody(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def load(self, context):
            self.mood = Path(context.parameters["mood"])

        def forward(self, x):
            time.sleep({QUICK_S} * ({FACTOR} if self.mood.exists() else 1))
            return x
"""

LEARNED_WITHIN = 30
"""Batches after which predictions are right again, whatever happened before."""
OTHERS = 30
"""Batches that are then looked at."""


class Stage:
    """The model behind a server, its mood, and callers."""

    def __init__(self, server: ServerProcess, mood: Path, client: AsyncClient) -> None:
        self.server = server
        self.mood = mood
        self.client = client
        self.answered = 0
        self.slowest_s = 0.0
        self.stopped = False

    def batches(self, ratio: str = "+Inf") -> int:
        """Batches so far whose prediction was at most so many times their duration."""
        labels = f'model="moody",version="1",le="{ratio}"'
        name = "headrace_batch_duration_prediction_ratio_bucket"
        return int(metric(self.server, f"{name}{{{labels}}}"))

    async def until_batches(self, count: int) -> None:
        while await asyncio.to_thread(self.batches) < count:
            await asyncio.sleep(0.02)

    async def share_predicted(self) -> float:
        """Of the next batches once it has had time to learn, the share that was predicted within
        a factor of two."""
        await self.until_batches(self.batches() + LEARNED_WITHIN)
        low, high, before = self.batches("0.5"), self.batches("2.0"), self.batches()
        await self.until_batches(before + OTHERS)
        predicted = (self.batches("2.0") - high) - (self.batches("0.5") - low)
        return predicted / (self.batches() - before)

    async def call_on(self, **options: object) -> None:
        x = np.ones((1, 1), np.float32)
        while not self.stopped:
            began_s = time.monotonic()
            try:
                await self.client.infer("moody", {"x": x}, **options)  # type: ignore[arg-type]
            except Unavailable:
                await asyncio.sleep(0.005)
                continue
            self.answered += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    config = f'parameters {{ key: "mood" value {{ string_value: "{tmp_path / "slow"}" }} }}'
    write_model(tmp_path / "repository", "moody", MOODY, config)
    return tmp_path / "repository"


async def test_predictions_follow_a_tenfold_jump_and_nobody_is_starved(
    repository: Path, tmp_path: Path
) -> None:
    with ServerProcess(repository) as server:
        async with AsyncClient(server.grpc_address, timeout=60.0) as client:
            stage = Stage(server, tmp_path / "slow", client)
            callers = [asyncio.create_task(stage.call_on()) for _ in range(CALLERS)]
            assert await stage.share_predicted() > 0.8
            stage.mood.touch()
            assert await stage.share_predicted() > 0.8
            stage.mood.unlink()
            assert await stage.share_predicted() > 0.8
            stage.stopped = True
            await asyncio.gather(*callers)
    assert stage.slowest_s < 20 * FACTOR * QUICK_S


async def test_callers_with_deadlines_are_served_again_soon_after_a_slow_spell(
    repository: Path, tmp_path: Path
) -> None:
    """While it is slow their deadlines cannot be met; that must not be believed for long."""
    timeout = {"parameters": {"timeout": int(4 * QUICK_S * 1e6)}}
    with ServerProcess(repository) as server:
        once = RetryPolicy(max_attempts=1)
        async with AsyncClient(server.grpc_address, timeout=60.0, retry=once) as client:
            stage = Stage(server, tmp_path / "slow", client)
            callers = [asyncio.create_task(stage.call_on(**timeout)) for _ in range(2)]
            async with asyncio.timeout(30.0):
                while stage.answered < 20:
                    await asyncio.sleep(0.02)
                stage.mood.touch()
                await asyncio.sleep(3.0)
                spell = stage.answered
                stage.mood.unlink()
                began_s = time.monotonic()
                while stage.answered < spell + 50:
                    await asyncio.sleep(0.02)
                recovered_s = time.monotonic() - began_s
            stage.stopped = True
            await asyncio.gather(*callers)
    assert recovered_s < 6.0

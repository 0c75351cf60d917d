"""Every answer finds its owner, with many callers, mixed rows and several workers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess
from worker_processes import workers_of
from written_models import write_model

pytestmark = pytest.mark.e2e

REQUESTS = 2_000

SCALED = """
    import torch
    from headrace_server import Model, TensorSpec

    class Scaled(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]
        max_batch_size = 8192

        def forward(self, x, parameters):
            return x * torch.tensor([row["scale"] for row in parameters])[:, None]
"""


async def test_two_thousand_concurrent_requests_each_get_their_own_rows(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(affine="instance_group { kind: KIND_CPU count: 3 }")
    dice = random.Random(7)
    rows = [dice.randint(1, 8) for _ in range(REQUESTS)]
    sent = [
        np.arange(3 * count, dtype=np.int64).reshape(count, 3) + 1_000 * index
        for index, count in enumerate(rows)
    ]
    async with AsyncClient(server.grpc_address) as client:
        results = await asyncio.gather(
            *(client.infer("affine", {"x": x}, timeout=60.0) for x in sent)
        )
        (statistics,) = await client.statistics("affine")
    for x, result in zip(sent, results, strict=True):
        np.testing.assert_array_equal(result["y"], 2 * x + 1)
    assert statistics.success.count == REQUESTS
    assert statistics.inference_count == sum(rows)
    assert statistics.execution_count < REQUESTS, "no requests were batched"
    assert max(size.batch_size for size in statistics.batch_stats) <= 64


async def test_every_row_has_its_request_s_parameters_however_long_and_many_they_are(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, "scaled", SCALED)
    # Sent along with every row, these would be 128 MB: more than a worker takes in one frame.
    rows, note = 8_000, "n" * 16_000
    x = np.arange(rows)[:, None]
    with ServerProcess(tmp_path) as server:
        workers = workers_of(server.pid)
        async with AsyncClient(server.grpc_address) as client:
            scales = [(3, rows), (-1, 50), (7, 100)]
            calls = [
                client.infer("scaled", {"x": x[:count]}, parameters={"scale": scale, "note": note})
                for scale, count in scales
            ]
            for result, (scale, count) in zip(await asyncio.gather(*calls), scales, strict=True):
                np.testing.assert_array_equal(result["y"], scale * x[:count])
        assert workers_of(server.pid) == workers

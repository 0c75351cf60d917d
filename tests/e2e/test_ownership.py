"""Every answer finds its owner, with many callers, mixed rows and several workers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e

REQUESTS = 2_000


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

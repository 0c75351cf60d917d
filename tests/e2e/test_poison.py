"""One request that breaks the model, or its worker, among many good ones: it fails alone."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.errors import InternalError, ServerError, Unavailable
from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e

GOOD = 63
RAISES, KILLS = -1.0, -2.0


@pytest.mark.parametrize(
    ("poison", "error"), [(RAISES, InternalError), (KILLS, Unavailable)], ids=["raises", "kills"]
)
async def test_poisonous_request_fails_alone(
    sharing_server: ServerProcess, poison: float, error: type[ServerError]
) -> None:
    values = [float(i) for i in range(GOOD)]
    values.insert(GOOD // 2, poison)
    async with AsyncClient(sharing_server.grpc_address) as client:
        results = await asyncio.gather(
            *(
                client.infer("fragile", {"x": np.array([[v]], np.float32)}, timeout=60.0)
                for v in values
            ),
            return_exceptions=True,
        )
        assert await client.model_ready("fragile") or poison == KILLS
    for value, result in zip(values, results, strict=True):
        if value == poison:
            assert isinstance(result, error)
        else:
            assert not isinstance(result, BaseException), value
            assert result["y"] == 2 * value


async def test_requests_of_no_length_are_answered(callable_server: ServerProcess) -> None:
    async with AsyncClient(callable_server.grpc_address) as client:
        results = await asyncio.gather(
            *(client.infer("letters", {"text": [[""]]}, timeout=30.0) for _ in range(4))
        )
        assert all(result["total"] == 0 for result in results)
        after = await client.infer("letters", {"text": [["a"]]}, timeout=30.0)
        assert after["total"] == ord("a")

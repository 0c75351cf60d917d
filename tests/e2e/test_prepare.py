"""Ragged models with a `prepare` stage: padding changes nothing, and a liar harms nobody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.errors import ServerError
from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e


async def test_requests_of_all_lengths_ride_together_and_get_answers_of_their_own_length(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(letters="")
    dice = random.Random(3)
    texts = ["x" * dice.randint(1, 40) + str(i) for i in range(300)]
    async with AsyncClient(server.grpc_address) as client:
        results = await asyncio.gather(
            *(client.infer("letters", {"text": [[text]]}, timeout=60.0) for text in texts)
        )
        (statistics,) = await client.statistics("letters")
    for text, result in zip(texts, results, strict=True):
        codes = list(text.encode())
        np.testing.assert_array_equal(result["upper"], [[code + 1 for code in codes]])
        np.testing.assert_array_equal(result["total"], [[sum(codes)]])
    assert statistics.success.count == len(texts)
    assert statistics.execution_count < len(texts)


async def test_a_request_whose_prepare_lies_fails_alone(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(letters="")
    texts = ["fine", "lie about the mask", "good", "lie about the rows", "raise", "well"] * 5
    async with AsyncClient(server.grpc_address) as client:
        results = await asyncio.gather(
            *(client.infer("letters", {"text": [[text]]}, timeout=60.0) for text in texts),
            return_exceptions=True,
        )
    for text, result in zip(texts, results, strict=True):
        if text.startswith(("lie", "raise")):
            assert isinstance(result, ServerError), text
            assert result.reason in ("model_failed", "unequal_lengths")
        else:
            assert not isinstance(result, BaseException), text
            assert result["total"] == sum(text.encode())

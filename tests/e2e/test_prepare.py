"""Ragged models with a `prepare` stage: padding changes nothing, and a liar harms nobody else."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.errors import InvalidRequest, ServerError
from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e

LIES = ("the mask", "the rows", "the types", "the shapes", "the count", "everything")


async def test_requests_of_all_lengths_ride_together_and_get_answers_of_their_own_length(
    callable_server: ServerProcess,
) -> None:
    dice = random.Random(3)
    texts = ["x" * dice.randint(1, 40) + str(i) for i in range(300)]
    async with AsyncClient(callable_server.grpc_address) as client:
        (before,) = await client.statistics("letters")
        results = await asyncio.gather(
            *(client.infer("letters", {"text": [[text]]}, timeout=60.0) for text in texts)
        )
        (statistics,) = await client.statistics("letters")
    for text, result in zip(texts, results, strict=True):
        codes = list(text.encode())
        np.testing.assert_array_equal(result["upper"], [[code + 1 for code in codes]])
        np.testing.assert_array_equal(result["total"], [[sum(codes)]])
    assert statistics.success.count - before.success.count == len(texts)
    assert statistics.execution_count - before.execution_count < len(texts)


async def test_a_request_whose_prepare_lies_fails_alone(
    callable_server: ServerProcess,
) -> None:
    lies = [f"lie about {what}" for what in LIES]
    texts = [text for lie in lies for text in ("fine", lie, "good")] + ["raise", "well"]
    texts *= 3
    async with AsyncClient(callable_server.grpc_address) as client:
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


async def test_text_that_is_longer_than_the_prepared_tensor_may_be_is_refused_with_the_bound(
    callable_server: ServerProcess,
) -> None:
    async with AsyncClient(callable_server.grpc_address) as client:
        longest, too_long, short = await asyncio.gather(
            *(
                client.infer("letters", {"text": [["x" * length]]}, timeout=60.0)
                for length in (64, 65, 1)
            ),
            return_exceptions=True,
        )
    assert isinstance(too_long, InvalidRequest)
    assert "input 'codes' for model 'letters'. Expected [-1, 0..64], got [1, 65]" in str(too_long)
    for result, length in ((longest, 64), (short, 1)):
        assert not isinstance(result, BaseException)
        assert result["total"] == length * ord("x")

"""Thousands of multiplexed calls on the real server: mixed up, cancelled, and cut off by a kill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace import AsyncClient, Client, InternalError, RetryPolicy, Unavailable
from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e

CALLS = 2_000
TWO_WORKERS = "instance_group { kind: KIND_CPU count: 2 }"


def row(n: int) -> np.ndarray:
    return np.array([[n, -n, 7 * n]])


async def opened(client: AsyncClient) -> None:
    """Have a stream opened."""
    async with asyncio.timeout(30):
        while client.open_streams == 0:
            await client.infer("affine", {"x": row(0)})


async def test_thousands_of_calls_at_once_get_their_own_answers_whoever_gives_up(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(affine=TWO_WORKERS, letters=TWO_WORKERS)

    async def call(client: AsyncClient, n: int) -> None:
        if n % 10 == 3:  # a model that prepares its requests rides along
            word = f"word number {n}".encode()
            result = await client.infer("letters", {"text": np.array([[word]], object)})
            assert result["total"].tolist() == [[sum(word)]]
        else:
            result = await client.infer("affine", {"x": row(n)}, request_id=str(n))
            assert result["y"].tolist() == (2 * row(n) + 1).tolist()
            assert result.request_id == str(n)

    async with AsyncClient(server.grpc_address, multiplex=True) as client:
        await client.infer("letters", {"text": np.array([[b"first"]], object)})
        await opened(client)
        for _ in range(2):  # once while further streams open, once over all of them
            calls = [asyncio.create_task(call(client, n)) for n in range(CALLS)]
            await asyncio.sleep(0)
            for n in range(0, CALLS, 7):
                calls[n].cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for n, result in enumerate(results):
                if n % 7:
                    assert result is None, (n, result)
                else:
                    assert isinstance(result, asyncio.CancelledError), (n, result)
        assert 1 <= client.open_streams <= 4
        with pytest.raises(InternalError):
            await client.infer("letters", {"text": np.array([[b"raise"]], object)})
        await call(client, 3)
    assert server.stop() == 0


def test_many_threads_share_streams(serve: Callable[..., ServerProcess]) -> None:
    server = serve(affine=TWO_WORKERS)
    with (
        Client(server.grpc_address, multiplex=True) as client,
        ThreadPoolExecutor(64) as threads,
    ):

        def call(n: int) -> bool:
            result = client.infer("affine", {"x": row(n)})
            return result["y"].tolist() == (2 * row(n) + 1).tolist()

        assert all(threads.map(call, range(CALLS)))
        assert client.open_streams >= 1
    assert server.stop() == 0


async def test_server_killed_mid_stream_fails_every_call_that_may_not_be_tried_again(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(affine=TWO_WORKERS, slow="max_batch_size: 1")
    once = RetryPolicy(max_attempts=1)
    async with AsyncClient(server.grpc_address, multiplex=True, retry=once) as client:
        await client.infer("slow", {"x": np.zeros((1, 1), np.float32)})
        await opened(client)
        calls = [
            asyncio.create_task(client.infer("slow", {"x": np.full((1, 1), n, np.float32)}))
            for n in range(200)
        ]
        await calls[0]
        await asyncio.to_thread(server.kill)
        async with asyncio.timeout(30):
            results = await asyncio.gather(*calls, return_exceptions=True)
    answered = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
    for n in answered:
        result = results[n]
        assert not isinstance(result, BaseException)
        assert result["y"].tolist() == [[n]]
    assert len(answered) < 200
    for result in results:
        assert not isinstance(result, BaseException) or isinstance(result, Unavailable), result


async def test_calls_outlive_a_server_that_is_killed_and_started_again(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(affine=TWO_WORKERS)
    patient = RetryPolicy(max_attempts=200, initial_backoff_s=0.2, max_backoff_s=0.5)
    port = server.grpc_address.rpartition(":")[2]
    stop = threading.Event()
    answered = 0

    async def call(client: AsyncClient, first: int) -> None:
        nonlocal answered
        n = first
        while not stop.is_set():
            result = await client.infer("affine", {"x": row(n)})
            assert result["y"].tolist() == (2 * row(n) + 1).tolist()
            answered += 1
            n += 100

    async with AsyncClient(server.grpc_address, multiplex=True, retry=patient) as client:
        await opened(client)
        callers = [asyncio.create_task(call(client, n)) for n in range(100)]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(serve, "--grpc-port", port)
        before = answered
        async with asyncio.timeout(60):
            while answered < before + 1_000 or client.open_streams == 0:
                await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*callers)

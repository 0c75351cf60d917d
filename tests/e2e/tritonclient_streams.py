"""Run inside the stock Triton client's own environment: streams, sync and asyncio.

    python tritonclient_streams.py ADDRESS

Sends many requests to `affine` over one stream without waiting, every tenth to a model that is not
there, and checks that each gets its own answer or its own error, in the order of the requests.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio

REQUESTS = 300


def model_of(index: int) -> str:
    return "nobody" if index % 10 == 9 else "affine"


def given(module: Any, index: int) -> list[Any]:
    tensor = module.InferInput("x", [1, 3], "INT64")
    tensor.set_data_from_numpy(np.array([[index, 2 * index, 3 * index]]))
    return [tensor]


def check(index: int, result: Any, error: Any) -> None:
    if model_of(index) == "nobody":
        assert result is None, index
        assert "Request for unknown model: 'nobody' is not found" in str(error), error
        return
    assert error is None, error
    response = result.get_response()
    assert response.id == str(index), (response.id, index)
    assert response.parameters["triton_final_response"].bool_param
    expected = [[2 * k * index + 1 for k in (1, 2, 3)]]
    assert result.as_numpy("y").tolist() == expected, (index, result.as_numpy("y"))


def with_sync_client(address: str) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with sync.InferenceServerClient(address) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for index in range(REQUESTS):
            client.async_stream_infer(
                model_of(index),
                given(sync, index),
                request_id=str(index),
                enable_empty_final_response=index % 2 == 0,
            )
        for index in range(REQUESTS):
            check(index, *answers.get(timeout=30))
        client.stop_stream()
        assert answers.empty()
        client.start_stream(
            callback=lambda result, error: answers.put((result, error)),
            headers={"triton_grpc_error": "true"},
        )
        client.async_stream_infer("nobody", given(sync, 0))
        _, error = answers.get(timeout=30)
        assert error.status() == "StatusCode.NOT_FOUND", error


async def with_asyncio_client(address: str) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index in range(REQUESTS):
            yield {
                "model_name": model_of(index),
                "inputs": given(aio, index),
                "request_id": str(index),
            }

    async with aio.InferenceServerClient(address) as client:
        index = 0
        async for result, error in client.stream_infer(requests(), stream_timeout=30.0):
            check(index, result, error)
            index += 1
        assert index == REQUESTS


def main() -> None:
    (address,) = sys.argv[1:]
    with_sync_client(address)
    print("sync: every answer in its place")
    asyncio.run(with_asyncio_client(address))
    print("asyncio: every answer in its place")


if __name__ == "__main__":
    main()

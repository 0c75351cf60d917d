"""Run inside the stock Triton client's own environment: everything over HTTP, sync and asyncio.

    python tritonclient_http.py ADDRESS

Against a server in explicit mode, with shared memory or without, over the models `affine` (2x + 1)
and `letters`, with `affine` loaded. Prints one line for each client whose every step went as it
should.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import numpy as np
import tritonclient.http as sync
import tritonclient.http.aio as aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

TOGETHER = 64


def rows_of(number: int) -> Any:
    return np.arange((number % 7 + 1) * 3, dtype=np.int64).reshape(-1, 3) + 1_000 * number


def given(module: Any, rows: Any, *, binary: bool = True) -> list[Any]:
    tensor = module.InferInput("x", rows.shape, "INT64")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def check(rows: Any, answer: Any) -> None:
    got = answer.as_numpy("y")
    assert got.dtype == np.int64
    assert np.array_equal(got, 2 * rows + 1), got


def with_sync_client(address: str) -> None:
    with sync.InferenceServerClient(address, concurrency=8) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("affine")
        assert not client.is_model_ready("letters")
        extensions = client.get_server_metadata()["extensions"]
        assert "binary_tensor_data" in extensions
        assert client.get_model_metadata("affine")["inputs"] == [
            {"name": "x", "datatype": "INT64", "shape": [-1, 3]}
        ]
        assert client.get_model_config("affine", "1")["input"][0]["dims"] == [3]
        for binary in (True, False):
            wanted = [sync.InferRequestedOutput("y", binary_data=binary)]
            for outputs in (None, wanted):
                rows = rows_of(5)
                inputs = given(sync, rows, binary=binary)
                answer = client.infer("affine", inputs, outputs=outputs, request_id="7")
                check(rows, answer)
                assert answer.get_response()["id"] == "7"
        pending = [
            (rows_of(number), client.async_infer("affine", given(sync, rows_of(number))))
            for number in range(TOGETHER)
        ]
        for rows, answer in pending:
            check(rows, answer.get_result())
        (counts,) = client.get_inference_statistics("affine")["model_stats"]
        assert counts["inference_stats"]["success"]["count"] == 4 + TOGETHER
        control(client)
        text(client)
        if "system_shared_memory" in extensions:
            memory(client)
        refusals(client)
    print("sync: every step in order")


def control(client: Any) -> None:
    states = {model["name"]: model.get("state") for model in client.get_model_repository_index()}
    assert states == {"affine": "READY", "letters": ""}, states
    client.load_model("letters", config='{"max_batch_size": 7}')
    assert client.get_model_config("letters")["max_batch_size"] == 7
    client.unload_model("letters", unload_dependents=True)
    assert not client.is_model_ready("letters")
    client.load_model("letters")


def text(client: Any) -> None:
    words = np.array([[b"headrace"], ["größer".encode()]], dtype=object)
    for word in words:
        tensor = sync.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(word.reshape(1, 1))
        answer = client.infer("letters", [tensor])
        assert answer.as_numpy("total").item() == sum(word[0])
        assert answer.as_numpy("upper").tolist() == [[letter + 1 for letter in word[0]]]


def memory(client: Any) -> None:
    rows, key = rows_of(6), f"/headrace-triton-http-{os.getpid()}"
    region = shm.create_shared_memory_region("region", key, 2 * rows.nbytes, create_only=True)
    client.register_system_shared_memory("region", key, 2 * rows.nbytes)
    (status,) = client.get_system_shared_memory_status()
    assert (status["name"], status["byte_size"]) == ("region", 2 * rows.nbytes), status
    shm.set_shared_memory_region(region, [rows])
    tensor = sync.InferInput("x", rows.shape, "INT64")
    tensor.set_shared_memory("region", rows.nbytes)
    wanted = sync.InferRequestedOutput("y")
    wanted.set_shared_memory("region", rows.nbytes, rows.nbytes)
    client.infer("affine", [tensor], outputs=[wanted])
    there = shm.get_contents_as_numpy(region, np.int64, rows.shape, rows.nbytes)
    assert np.array_equal(there, 2 * rows + 1), there
    client.unregister_system_shared_memory("region")
    assert client.get_system_shared_memory_status() == []
    shm.destroy_shared_memory_region(region)
    print("tensors in shared memory")


def refusals(client: Any) -> None:
    wrong = sync.InferInput("x", [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    for call, words in (
        (lambda: client.infer("nobody", given(sync, rows_of(1))), "unknown model: 'nobody'"),
        (lambda: client.infer("affine", [wrong]), "data-type is 'FP32', but model 'affine'"),
        (lambda: client.load_model("nobody"), "failed to load 'nobody', failed to poll"),
        (lambda: client.get_model_metadata("affine", "9"), "'affine' version 9 is not found"),
        (client.get_log_settings, "/v2/logging is not supported"),
        (client.get_cuda_shared_memory_status, "CUDA shared memory is not supported"),
    ):
        refused = refusal(call)
        assert words in refused, refused


def refusal(call: Any) -> str:
    try:
        call()
    except InferenceServerException as error:
        return error.message() or ""
    return "no error"


async def with_asyncio_client(address: str) -> None:
    async with aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()

        async def one(number: int) -> None:
            rows = rows_of(number)
            check(rows, await client.infer("affine", given(aio, rows)))

        await asyncio.gather(*map(one, range(TOGETHER)))
    print("asyncio: every step in order")


def main() -> int:
    (address,) = sys.argv[1:]
    with_sync_client(address)
    asyncio.run(with_asyncio_client(address))
    return 0


if __name__ == "__main__":
    sys.exit(main())

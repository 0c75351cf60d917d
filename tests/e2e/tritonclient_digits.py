"""Run inside the stock Triton client's own environment: call digits, sync and asyncio.

    python tritonclient_digits.py ADDRESS IMAGES.npy PROBABILITIES.npy

Sends the first 1, 2, ... images as one request each, alone, and compares with what the model gave
in-process for the same batch shape. Prints the largest absolute difference of each client.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio

SIZES = (1, 2, 3, 8, 17, 64)


def given(module: Any, images: Any) -> list[Any]:
    tensor = module.InferInput("image", images.shape, "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


def with_sync_client(address: str, images: Any) -> list[Any]:
    with sync.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        metadata = client.get_model_metadata("digits")
        assert [t.name for t in metadata.inputs] == ["image"]
        assert client.get_model_config("digits").config.max_batch_size == 64
        assert [m.name for m in client.get_model_repository_index().models] == [
            "digits",
            "sentences",
        ]
        answers = [
            client.infer("digits", given(sync, images[:size]), request_id=str(size))
            for size in SIZES
        ]
        counts = client.get_inference_statistics("digits").model_stats[0]
        assert counts.inference_stats.success.count >= len(SIZES)
        assert answers[0].get_response().id == "1"
        return [answer.as_numpy("probabilities") for answer in answers]


async def with_asyncio_client(address: str, images: Any) -> list[Any]:
    async with aio.InferenceServerClient(address) as client:
        return [
            (await client.infer("digits", given(aio, images[:size]))).as_numpy("probabilities")
            for size in SIZES
        ]


def main() -> int:
    address, images_file, expected_file = sys.argv[1:]
    images = np.load(images_file)
    expected = np.load(expected_file)
    answers = {
        "sync": with_sync_client(address, images),
        "asyncio": asyncio.run(with_asyncio_client(address, images)),
    }
    worst = 0.0
    for client, results in answers.items():
        ends = np.cumsum(SIZES)
        differences = [
            float(np.abs(result - expected[end - size : end]).max())
            for size, end, result in zip(SIZES, ends, results, strict=True)
        ]
        print(f"{client}: largest absolute difference {max(differences)}")
        worst = max(worst, *differences)
    return 0 if worst == 0.0 else 1


if __name__ == "__main__":
    sys.exit(main())

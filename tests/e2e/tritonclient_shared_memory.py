"""Run inside the stock Triton client's own environment: tensors in system shared memory.

    python tritonclient_shared_memory.py ADDRESS

Calls `affine` (2x + 1) and `letters` with inputs and outputs in regions, by unary calls, by calls
under way together and over a stream, and checks every answer where the region holds it.
"""

from __future__ import annotations

import os
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

ROWS = 64
ROW_BYTES = 3 * 8


class Regions:
    """One region for inputs and one for outputs, each with room for `slots` requests."""

    def __init__(self, client: Any, slots: int, slot_bytes: int = ROWS * ROW_BYTES) -> None:
        self.slot_bytes = slot_bytes
        self.inputs = self._region(client, "inputs", slots)
        self.outputs = self._region(client, "outputs", slots)

    def _region(self, client: Any, name: str, slots: int) -> Any:
        key, nbytes = f"/headrace-triton-{os.getpid()}-{name}", slots * self.slot_bytes
        region = shm.create_shared_memory_region(name, key, nbytes, create_only=True)
        client.register_system_shared_memory(name, key, nbytes)
        return region

    def affine(self, slot: int, rows: Any) -> tuple[list[Any], list[Any]]:
        offset = slot * self.slot_bytes
        shm.set_shared_memory_region(self.inputs, [rows], offset)
        given = grpcclient.InferInput("x", rows.shape, "INT64")
        given.set_shared_memory("inputs", rows.nbytes, offset)
        wanted = grpcclient.InferRequestedOutput("y")
        wanted.set_shared_memory("outputs", rows.nbytes, offset)
        return [given], [wanted]

    def check(self, slot: int, rows: Any, answer: Any) -> None:
        assert tuple(answer.get_output("y").shape) == rows.shape
        there = shm.get_contents_as_numpy(
            self.outputs, np.int64, rows.shape, slot * self.slot_bytes
        )
        assert np.array_equal(there, 2 * rows + 1), there

    def close(self) -> None:
        for region in (self.inputs, self.outputs):
            shm.destroy_shared_memory_region(region)


def rows_of(slot: int) -> Any:
    return np.arange((slot % ROWS + 1) * 3, dtype=np.int64).reshape(-1, 3) + 1_000 * slot


def one_by_one(client: Any, regions: Regions, slots: int) -> None:
    for slot in range(slots):
        rows = rows_of(slot)
        inputs, outputs = regions.affine(slot, rows)
        regions.check(slot, rows, client.infer("affine", inputs, outputs=outputs))


def together(client: Any, regions: Regions, slots: int) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for slot in range(slots):
        inputs, outputs = regions.affine(slot, rows_of(slot))
        client.async_infer(
            "affine",
            inputs,
            lambda result, error, slot=slot: answers.put((slot, result, error)),
            outputs=outputs,
        )
    for _ in range(slots):
        slot, result, error = answers.get(timeout=60)
        assert error is None, error
        regions.check(slot, rows_of(slot), result)


def streamed(client: Any, regions: Regions, slots: int) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for slot in range(slots):
        inputs, outputs = regions.affine(slot, rows_of(slot))
        client.async_stream_infer("affine", inputs, outputs=outputs)
    for slot in range(slots):
        result, error = answers.get(timeout=60)
        assert error is None, error
        regions.check(slot, rows_of(slot), result)
    client.stop_stream()


def text(client: Any, regions: Regions) -> None:
    """BYTES in a region, and a prepared model behind it; its answers come with the message."""
    words = serialize_byte_tensor(np.array([[b"headrace"]], dtype=object))
    shm.set_shared_memory_region(regions.inputs, [words])
    given = grpcclient.InferInput("text", [1, 1], "BYTES")
    given.set_shared_memory("inputs", len(words.item()))
    upper = grpcclient.InferRequestedOutput("upper")
    upper.set_shared_memory("outputs", 64, 64)
    total = grpcclient.InferRequestedOutput("total")
    answer = client.infer("letters", [given], outputs=[upper, total])
    assert answer.as_numpy("total").item() == sum(b"headrace")
    there = shm.get_contents_as_numpy(regions.outputs, np.int64, [1, 8], 64)
    assert there.tolist() == [[letter + 1 for letter in b"headrace"]]


def refusal(call: Any) -> str:
    try:
        call()
    except InferenceServerException as error:
        return error.message() or ""
    return "no error"


def refusals(client: Any, regions: Regions) -> None:
    inputs, outputs = regions.affine(0, rows_of(0))
    outputs[0].set_shared_memory("outputs", 8)
    for call, words in (
        (lambda: client.infer("affine", inputs, outputs=outputs), "should be at least 24 bytes"),
        (
            lambda: client.register_system_shared_memory("inputs", "/x", 8),
            "already in manager",
        ),
        (
            lambda: client.register_system_shared_memory("more", "/nobody-made-this", 8),
            "Unable to open shared memory region: '/nobody-made-this'",
        ),
        (
            lambda: client.register_cuda_shared_memory("gpu", b"", 0, 8),
            "CUDA shared memory is not supported",
        ),
    ):
        refused = refusal(call)
        assert words in refused, refused


def main() -> int:
    slots = 96
    with grpcclient.InferenceServerClient(sys.argv[1]) as client:
        assert "system_shared_memory" in client.get_server_metadata().extensions
        regions = Regions(client, slots)
        assert sorted(client.get_system_shared_memory_status().regions) == ["inputs", "outputs"]
        for way in (one_by_one, together, streamed):
            way(client, regions, slots)
            print(f"{way.__name__}: every answer in its region")
        text(client, regions)
        refusals(client, regions)
        client.unregister_system_shared_memory("inputs")
        assert list(client.get_system_shared_memory_status().regions) == ["outputs"]
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
        regions.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

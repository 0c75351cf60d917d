"""A model of every kind of input that runs in the test's own process, on the inline executor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from headrace_server.models.spec import ModelSpec, TensorSpec


class Sums:
    """Takes a, b (FP32 [2], b optional), tags (BYTES [-1]): adds, and repeats the tags."""

    spec = ModelSpec(
        name="sums",
        version=3,
        platform="python",
        max_batch_size=8,
        inputs=(
            TensorSpec("a", "FP32", [2]),
            TensorSpec("b", "FP32", [2], optional=True),
            TensorSpec("tags", "BYTES", [-1]),
        ),
        outputs=(TensorSpec("sum", "FP32", [2]), TensorSpec("again", "BYTES", [-1])),
    )

    def run(self, inputs: Any, parameters: Any) -> dict[str, Any]:
        if np.any(inputs["a"].numpy() < -1e6):
            raise ValueError("a secret path: /etc/secret")
        if np.any(inputs["a"].numpy() >= 1e7):
            time.sleep(0.2)
        b = inputs.get("b", torch.zeros(1))
        again = inputs["tags"]
        if parameters is not None:
            again = np.array(
                [
                    [tag + repr(p).encode() for tag in row]
                    for row, p in zip(again, parameters, strict=True)
                ],
                dtype=object,
            )
        return {"sum": inputs["a"] + b, "again": again}

    def close(self) -> None:
        pass

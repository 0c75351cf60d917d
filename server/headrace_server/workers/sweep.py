"""Times a few batches of a freshly loaded model, so that its cost is known before anyone calls it.

Workers only: imports torch.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator
from time import perf_counter

import torch

from headrace_server.core.cost import Sample
from headrace_server.models.loading import LoadedModel
from headrace_server.models.spec import DYNAMIC, TensorSpec
from headrace_server.models.torch_types import TORCH_DTYPES

BUDGET_S = 3.0
"""Time that a sweep may take in all; large shapes are left to be extrapolated."""
LENGTHS = (8, 32, 128)
REPETITIONS = 3

log = logging.getLogger("headrace.worker")


def sweep(model: LoadedModel) -> tuple[Sample, ...]:
    """Rows, padded length and median seconds of batches of zeros, small ones first.

    Empty for models whose cost zeros say nothing about: those that take BYTES. Lengths vary only
    where inputs are ragged; a shape that the model refuses ends the sweep in that direction.
    """
    spec = model.spec
    if any(tensor.datatype == "BYTES" for tensor in spec.batched_inputs):
        return ()
    ragged = any(tensor.pad is not None for tensor in spec.batched_inputs)
    samples: list[Sample] = []
    deadline_s = perf_counter() + BUDGET_S
    for length in LENGTHS if ragged else (0,):
        for rows in _sizes(spec.max_batch_size):
            if samples and perf_counter() + _guess(samples, rows, length) > deadline_s:
                break
            try:
                inputs, actual = _zeros(model, rows, length)
                times = [_time(model, inputs) for _ in range(REPETITIONS)]
            except Exception as error:
                log.warning("%d rows of length %d cannot be timed: %s", rows, length, error)
                break
            samples.append((rows, actual, statistics.median(times)))
    return tuple(samples)


def _sizes(most: int) -> Iterator[int]:
    """1, 2, 4, ... and the largest batch itself."""
    rows = 1
    while rows < most:
        yield rows
        rows *= 2
    yield max(1, most)


def _guess(samples: list[Sample], rows: int, length: int) -> float:
    """Seconds that timing the next shape will take, in proportion to its elements."""
    last_rows, last_length, seconds = samples[-1]
    return REPETITIONS * seconds * rows * max(1, length) / (last_rows * max(1, last_length))


def _zeros(model: LoadedModel, rows: int, length: int) -> tuple[dict[str, torch.Tensor], int]:
    """Inputs of these rows with every ragged dimension of this length, and the length that the
    scheduler would see in them."""
    seen = length
    inputs = {}
    for tensor in model.spec.batched_inputs:
        shape = _shape(model, tensor, length)
        if not length:
            dynamic = [s for s, dim in zip(shape, tensor.shape, strict=True) if dim == DYNAMIC]
            seen = max(seen, math.prod(dynamic) if dynamic else 0)
        full = (rows, *shape) if model.spec.max_batch_size else shape
        inputs[tensor.name] = torch.zeros(
            full, dtype=TORCH_DTYPES[tensor.datatype], device=model.device
        )
    return inputs, seen


def _shape(model: LoadedModel, tensor: TensorSpec, length: int) -> tuple[int, ...]:
    example = model.example_shapes.get(tensor.name, [16] * len(tensor.shape))
    return tuple(
        dim if dim != DYNAMIC else (length or taken)
        for dim, taken in zip(tensor.shape, example, strict=True)
    )


def _time(model: LoadedModel, inputs: dict[str, torch.Tensor]) -> float:
    started = perf_counter()
    model.run(inputs)
    if torch.device(model.device).type == "cuda":
        torch.cuda.synchronize(model.device)
    return perf_counter() - started

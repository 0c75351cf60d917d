"""Times a few batches of a freshly loaded model, so that its cost is known before anyone calls it.

Workers only: imports torch.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from time import perf_counter

import torch

from headrace_server.core.cost import Sample
from headrace_server.models.loading import LoadedModel
from headrace_server.models.spec import DYNAMIC, TensorSpec
from headrace_server.models.torch_types import TORCH_DTYPES
from headrace_server.models.warmup import DEFAULT_LENGTH

BUDGET_S = 3.0
"""Time that a sweep may take in all; large shapes are left to be extrapolated."""
LENGTHS = (8, 32, 128)
REPETITIONS = 3

STALE_FACTOR = 1.5
RECHECK_S = 0.1
"""What was measured once holds as long as the largest batch that can be timed again within
`RECHECK_S` takes neither `STALE_FACTOR` times as long nor as short. The largest, since noise is a
small part of it."""

log = logging.getLogger("headrace.worker")


def can_sweep(model: LoadedModel) -> bool:
    """Whether zeros say anything about the cost of the model: not where its batches hold BYTES."""
    return all(tensor.datatype != "BYTES" for tensor in model.spec.batched_inputs)


def sweep(model: LoadedModel) -> tuple[Sample, ...]:
    """Rows, padded length and median seconds of batches of zeros, ascending by length and rows.

    Lengths vary only where inputs are ragged, and each gets an equal share of the time; a shape
    that the model refuses ends the sweep in that direction. The model must be one that
    `can_sweep`.
    """
    samples: list[Sample] = []
    ends_s = perf_counter() + BUDGET_S
    lengths = _lengths(model)
    for done, length in enumerate(lengths):
        now = perf_counter()
        samples += _sweep_rows(model, length, now + (ends_s - now) / (len(lengths) - done))
    return tuple(samples)


def still_holds(model: LoadedModel, samples: Sequence[Sample]) -> bool:
    """Whether a batch of an earlier sweep, timed again, takes about as long as it did then."""
    brief = [sample for sample in samples if REPETITIONS * sample[2] <= RECHECK_S]
    rows, length, before_s = max(brief or samples[:1], key=lambda sample: sample[2])
    try:
        _, _, now_s = timed(model, rows, length if _is_ragged(model) else 0)
    except Exception as error:
        log.warning("%d rows of length %d cannot be timed again: %s", rows, length, error)
        return False
    return before_s / STALE_FACTOR <= now_s <= before_s * STALE_FACTOR


def _sweep_rows(model: LoadedModel, length: int, until_s: float) -> list[Sample]:
    """Batches of one length. Coarse steps first, so that time spent on the steps between them
    costs no reach: devices whose cost rises in steps show them there."""
    samples: list[Sample] = []
    for sizes in _passes(model.spec.max_batch_size):
        for rows in sizes:
            if samples and perf_counter() + _guess_s(samples, rows) > until_s:
                break
            try:
                samples.append(timed(model, rows, length))
            except Exception as error:
                log.warning("%d rows of length %d cannot be timed: %s", rows, length, error)
                return sorted(samples)
    return sorted(samples)


def _passes(most: int) -> Iterator[list[int]]:
    """1, 2, 4, ... and the largest batch itself; then 3, 6, 12, ... between them."""
    coarse = [1 << n for n in range(most.bit_length()) if 1 << n < most]
    yield [*coarse, max(1, most)]
    yield [rows * 3 // 2 for rows in coarse[1:] if rows * 3 // 2 < most]


def _guess_s(samples: Sequence[Sample], rows: int) -> float:
    """Seconds that timing so many rows will take: those of the next larger batch that is known,
    or in proportion to the largest."""
    above_s = [seconds for known, _, seconds in samples if known >= rows]
    most, _, seconds = max(samples)
    return REPETITIONS * (min(above_s) if above_s else seconds * rows / most)


def timed(model: LoadedModel, rows: int, length: int) -> Sample:
    """One shape: the median of a few runs. Length 0 is that of the model's own example.

    Raises whatever the model does.
    """
    inputs, seen = _zeros(model, rows, length)
    return rows, seen, statistics.median(_time(model, inputs) for _ in range(REPETITIONS))


def _is_ragged(model: LoadedModel) -> bool:
    return any(tensor.pad is not None for tensor in model.spec.batched_inputs)


def _lengths(model: LoadedModel) -> list[int]:
    """The lengths to try, within the bounds of every ragged input; 0 alone where there is none."""
    if not _is_ragged(model):
        return [0]
    low, high = 0, math.inf
    for tensor in model.spec.batched_inputs:
        if tensor.ragged_axis is not None and tensor.bounds:
            least, most = tensor.bounds[tensor.ragged_axis]
            low, high = max(low, least), min(high, math.inf if most == DYNAMIC else most)
    return sorted({int(min(max(length, low), high)) for length in LENGTHS})


def _zeros(model: LoadedModel, rows: int, length: int) -> tuple[dict[str, torch.Tensor], int]:
    """Inputs of these rows with every ragged dimension of this length, and the length that the
    scheduler would see in them."""
    seen = length
    inputs = {}
    for tensor in model.spec.batched_inputs:
        shape = _shape(model, tensor, length)
        if not length and not tensor.flat:  # what is concatenated pads nothing
            dynamic = [s for s, dim in zip(shape, tensor.shape, strict=True) if dim == DYNAMIC]
            seen = max(seen, math.prod(dynamic) if dynamic else 0)
        full = (rows, *shape) if model.spec.max_batch_size else shape
        inputs[tensor.name] = torch.zeros(
            full, dtype=TORCH_DTYPES[tensor.datatype], device=model.device
        )
    return inputs, seen


def _shape(model: LoadedModel, tensor: TensorSpec, length: int) -> tuple[int, ...]:
    example = model.example_shapes.get(tensor.name) or [DEFAULT_LENGTH] * len(tensor.shape)
    return tensor.nearest([length or taken for taken in example])


def _time(model: LoadedModel, inputs: dict[str, torch.Tensor]) -> float:
    started = perf_counter()
    model.run_rows(inputs)
    if torch.device(model.device).type == "cuda":
        torch.cuda.synchronize(model.device)
    return perf_counter() - started

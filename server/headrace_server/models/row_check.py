"""Tries out whether rows of an exported program ride together: each must answer as if alone.

A dynamic dimension 0 may also be a length (the words of one text), and torch records a program as
needing two rows when it merely was exported with two. Only running it tells.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from headrace_server.models.exported_signature import ProgramTensors

TOLERANCE = 1e-2
"""Largest difference between a row's answer alone and in company, relative to the largest number.
Kernels for other batch sizes sum in another order, at reduced precision on GPUs; rows that
influence each other differ by about the numbers themselves."""

Call = Callable[[Sequence[Any]], Sequence[torch.Tensor]]


def why_rows_do_not_batch(
    call: Call, tensors: ProgramTensors, device: str, *, trusted: bool
) -> str:
    """Run one row and two, and compare; returns the reason against batching, or nothing.

    An input of random numbers may be invalid for a program. Then nothing can be told, and its
    dynamic dimension 0 is taken for what it looks like. ``trusted``: the configuration says that
    there is a batch dimension, only a program that refuses single rows speaks against it.
    """
    pair = _random_inputs(tensors, rows=2, device=device)
    first = [tensor[:1] for tensor in pair]
    with torch.inference_mode():
        alone = _try(call, first)
        together = _try(call, pair)
        if alone is None or any(not _has_rows(output, 1) for output in alone):
            lower = tensors.batch.lower if tensors.batch else 1
            inputs = pair if lower <= 2 else _random_inputs(tensors, rows=lower, device=device)
            return "the program refuses a single row" if _try(call, inputs) else ""
        if trusted or together is None or any(not _has_rows(output, 2) for output in together):
            return ""
        again, second = _try(call, first), _try(call, [tensor[1:] for tensor in pair])
    if again is None or second is None or not all_close(alone, again):
        return ""  # answers that change by themselves tell nothing
    apart = [torch.cat(rows) for rows in zip(alone, second, strict=True)]
    if all_close(apart, together):
        return ""
    return "the rows of dimension 0 influence each other's answers"


def _random_inputs(tensors: ProgramTensors, rows: int, device: str) -> list[torch.Tensor]:
    """Draw floats from [0, 1) and whole numbers from {0, 1}, which are indices into most tables."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(shape, generator=generator)
            if tensor.dtype.is_floating_point
            else torch.randint(0, 2, shape, generator=generator)
        ).to(device, tensor.dtype)
        for tensor, shape in zip(tensors.inputs, tensors.example_shapes(rows), strict=True)
    ]


def _try(call: Call, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
    try:
        return call(inputs)
    except Exception:
        return None


def _has_rows(output: torch.Tensor, rows: int) -> bool:
    return output.ndim > 0 and output.shape[0] == rows


def all_close(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Whether two answers are the same but for `TOLERANCE`."""
    return all(_close(*pair) for pair in zip(left, right, strict=True))


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    left, right = left.double().nan_to_num(), right.double().nan_to_num()
    if left.shape != right.shape:
        return False
    largest = torch.maximum(left.abs(), right.abs()).max().item() if left.numel() else 0.0
    return bool(((left - right).abs() <= TOLERANCE * largest).all())

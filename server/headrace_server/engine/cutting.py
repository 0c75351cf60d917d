"""Cuts each request's answer out of its batch: its rows, and its own length where it was padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace_server.engine.calls import AnswerTensor
from headrace_server.models.spec import DYNAMIC, ModelSpec
from headrace_server.workers.executor import BatchOutput


def ragged_output_axes(spec: ModelSpec) -> Sequence[int | None]:
    """For each output the dimension, batch included, that follows the padded length; or None."""
    if all(tensor.pad is None for tensor in spec.batched_inputs):
        return [None] * len(spec.outputs)
    return [
        tensor.shape.index(DYNAMIC) + 1
        if DYNAMIC in tensor.shape and tensor.datatype != "BYTES"
        else None
        for tensor in spec.outputs
    ]


def rows_of(
    output: BatchOutput, first: int, end: int, axis: int | None, length: int
) -> AnswerTensor:
    """Copy rows `first` to `end` of a batch's output.

    With an `axis`, elements beyond `length` along it answer padding and are left out.
    """
    shape = (end - first, *output.shape[1:])
    offsets = output.row_offsets
    if offsets is not None:
        return AnswerTensor(shape, bytes(output.data[offsets[first] : offsets[end]]))
    stride = len(output.data) // output.shape[0]
    rows = output.data[first * stride : end * stride]
    if axis is None or output.shape[axis] <= length:
        return AnswerTensor(shape, bytes(rows))
    # Only the width of an element matters for cutting: BF16 has none that numpy knows.
    itemsize = stride * (end - first) // int(np.prod(shape))
    array = np.frombuffer(rows, np.dtype(f"V{itemsize}")).reshape(shape)
    cut = array[(slice(None),) * axis + (slice(length),)]
    return AnswerTensor(cut.shape, cut.tobytes())

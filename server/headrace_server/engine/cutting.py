"""Cuts each request's answer out of its batch: its rows, and its own length where it was padded."""

from __future__ import annotations

import math
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
    output: BatchOutput, first: int, end: int, axis: int | None, length: int, padded: int
) -> AnswerTensor:
    """Copy rows `first` to `end` of a batch's output.

    With an `axis` whose length is that of the padded batch, elements beyond the request's own
    `length` answer padding and are left out. An output of another length follows something else
    and is left alone.
    """
    shape = (end - first, *output.shape[1:])
    offsets = output.row_offsets
    if offsets is not None:
        return AnswerTensor(shape, bytes(output.data[offsets[first] : offsets[end]]))
    stride = len(output.data) // output.shape[0]
    rows = output.data[first * stride : end * stride]
    uncut = axis is None or not 0 < length < padded or output.shape[axis] != padded
    if uncut or not rows:
        return AnswerTensor(shape, bytes(rows))
    # Only the width of an element matters for cutting: BF16 has none that numpy knows.
    itemsize = len(rows) // math.prod(shape)
    array = np.frombuffer(rows, np.dtype(f"V{itemsize}")).reshape(shape)
    assert axis is not None
    cut = array[(slice(None),) * axis + (slice(length),)]
    return AnswerTensor(cut.shape, cut.tobytes())

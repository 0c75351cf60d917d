"""Cuts each request's answer out of its batch: its rows, and its own length where it was padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headrace_server.engine.calls import AnswerTensor
from headrace_server.models.spec import DYNAMIC, ModelSpec
from headrace_server.workers.executor import BatchOutput


def ragged_output_axes(spec: ModelSpec) -> Sequence[tuple[int, ...]]:
    """For each output the dimensions, batch included, that may follow the padded length."""
    if all(tensor.pad is None for tensor in spec.batched_inputs):
        return [()] * len(spec.outputs)
    return [
        tuple(axis + 1 for axis, dim in enumerate(tensor.shape) if dim == DYNAMIC)
        if tensor.datatype != "BYTES" and not tensor.shaped_like
        else ()
        for tensor in spec.outputs
    ]


def rows_of(
    output: BatchOutput, first: int, end: int, axes: Sequence[int], length: int, padded: int
) -> AnswerTensor:
    """Copy rows `first` to `end` of a batch's output, all of one request.

    Those of the `axes` whose length is that of the padded batch are cut back to the request's own
    `length`: elements beyond it answer padding. One of another length follows something else and
    is left alone.
    """
    if output.row_shapes is not None:
        return _dealt_out(output, output.row_shapes, first, end)
    shape = (end - first, *output.shape[1:])
    offsets = output.row_offsets
    if offsets is not None:
        return AnswerTensor(shape, bytes(output.data[offsets[first] : offsets[end]]))
    stride = len(output.data) // output.shape[0]
    rows = output.data[first * stride : end * stride]
    followed = [axis for axis in axes if 0 <= length < padded == output.shape[axis]]
    if not followed or not rows:
        return AnswerTensor(shape, bytes(rows))
    # Only the width of an element matters for cutting: BF16 has none that numpy knows.
    itemsize = len(rows) // math.prod(shape)
    array = np.frombuffer(rows, np.dtype(f"V{itemsize}")).reshape(shape)
    cut = array[tuple(slice(length if axis in followed else None) for axis in range(len(shape)))]
    return AnswerTensor(cut.shape, cut.tobytes())


def _dealt_out(
    output: BatchOutput, shapes: Sequence[tuple[int, ...]], first: int, end: int
) -> AnswerTensor:
    """The elements of these rows, which have one shape because one request sent them."""
    counts = [math.prod(shape) for shape in shapes]
    itemsize = len(output.data) // max(1, sum(counts))
    start, stop = (sum(counts[:row]) * itemsize for row in (first, end))
    return AnswerTensor((end - first, *shapes[first]), bytes(output.data[start:stop]))

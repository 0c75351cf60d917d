"""Cuts each request's answer out of its batch: its rows, and its own length where it was padded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import AnswerTensor
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import BatchOutput
from headrace_server.workers.regions import RegionError, Span


def ragged_output_axes(spec: ModelSpec) -> Sequence[tuple[int, ...]]:
    """For each output the dimensions, batch included, that may follow the padded length."""
    if all(tensor.pad is None for tensor in spec.batched_inputs):
        return [()] * len(spec.outputs)
    found = spec.dynamic_outputs if spec.following is None else spec.following
    return [tuple(axis + 1 for axis in axes) for axes in found]


def rows_of(
    output: BatchOutput, first: int, end: int, axes: Sequence[int], length: int, padded: int
) -> BatchOutput:
    """Rows `first` to `end` of a batch's output, all of one request, as views where they can be.

    Those of the `axes` whose length is that of the padded batch are cut back to the request's own
    `length`: elements beyond it answer padding. One of another length follows something else and
    is left alone.
    """
    if output.row_shapes is not None:
        return _dealt_out(output, output.row_shapes, first, end)
    shape = (end - first, *output.shape[1:])
    offsets = output.row_offsets
    if offsets is not None:
        return BatchOutput(shape, output.data[offsets[first] : offsets[end]])
    stride = len(output.data) // output.shape[0]
    rows = output.data[first * stride : end * stride]
    followed = [axis for axis in axes if 0 <= length < padded == output.shape[axis]]
    if not followed or not rows:
        return BatchOutput(shape, rows)
    # Only the width of an element matters for cutting: BF16 has none that numpy knows.
    itemsize = len(rows) // math.prod(shape)
    array = np.frombuffer(rows, np.dtype(f"V{itemsize}")).reshape(shape)
    cut = array[tuple(slice(length if axis in followed else None) for axis in range(len(shape)))]
    return BatchOutput(cut.shape, memoryview(cut.tobytes()))


def keep(part: BatchOutput, span: Span | None, output: str) -> AnswerTensor:
    """Copy contents out of the batch's memory: to where the caller shares some, if it does.

    Raises:
        ServingError: REGION_TOO_SMALL, REGION_UNUSABLE.
    """
    data = part.data
    if span is None:
        return AnswerTensor(part.shape, bytes(data))
    if len(data) > span.nbytes:
        raise ServingError(
            Reason.REGION_TOO_SMALL, output=output, got=span.nbytes, expected=len(data)
        )
    try:
        span.region.write(data, span.begin)
    except RegionError as error:
        raise ServingError(Reason.REGION_UNUSABLE, problem=error) from None
    return AnswerTensor(part.shape, b"", Span(span.region, span.begin, len(data)))


def _dealt_out(
    output: BatchOutput, shapes: Sequence[tuple[int, ...]], first: int, end: int
) -> BatchOutput:
    """The elements of these rows, which have one shape because one request sent them."""
    counts = [math.prod(shape) for shape in shapes]
    itemsize = len(output.data) // max(1, sum(counts))
    start, stop = (sum(counts[:row]) * itemsize for row in (first, end))
    return BatchOutput((end - first, *shapes[first]), output.data[start:stop])

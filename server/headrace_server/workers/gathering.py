"""Lays the inputs of a batch out in memory: the one copy that a request's bytes make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from headrace.tensors import DATATYPES
from headrace_server.models.spec import TensorSpec
from headrace_server.workers.executor import Parameter, RequestTensors
from headrace_server.workers.frames import TensorPlace
from headrace_server.workers.slab import aligned


def gather(
    inputs: Sequence[TensorSpec],
    requests: Sequence[RequestTensors],
    reserve: Callable[[int], memoryview],
) -> tuple[tuple[TensorPlace, ...], tuple[dict[str, Parameter], ...] | None]:
    """Copy the inputs of `requests` side by side into the memory that `reserve` gives.

    Every input becomes one contiguous region at an aligned offset. Raw contents are row-major (or
    elements in sequence, for BYTES), so the bytes of requests with equal trailing shape
    concatenate into the bytes of the batch. Ragged inputs are padded to the longest on the way.

    Args:
        inputs: the inputs of the model.
        requests: at least one; all have the same inputs with the same trailing shapes, up to the
            dimension that is padded.
        reserve: called once with the number of bytes needed.

    Returns:
        Where each input lies, and one mapping of custom parameters per row (None when no request
        has any).
    """
    first = requests[0]
    places = [
        _place(position, inputs[position], requests)
        for position, data in enumerate(first.data)
        if data is not None
    ]
    offset = 0
    for place in places:
        place.offset = offset
        offset = aligned(offset + place.nbytes)
    memory = reserve(offset)
    for place in places:
        if place.nbytes == 0:
            continue
        spec = inputs[place.position]
        if spec.ragged_axis is not None and len(requests) > 1:
            _copy_padded(spec, spec.ragged_axis + 1, place, requests, memory)
            continue
        start = place.offset
        for request in requests:
            data = request.data[place.position] or b""
            end = start + len(data)
            memory[start:end] = data
            start = end
    parameters = None
    if any(request.parameters for request in requests):
        parameters = tuple(dict(r.parameters) for r in requests for _ in range(r.rows))
    return tuple(places), parameters


def _place(position: int, spec: TensorSpec, requests: Sequence[RequestTensors]) -> TensorPlace:
    shape = requests[0].shapes[position] or ()
    data = requests[0].data[position] or b""
    if len(requests) == 1:
        return TensorPlace(position, 0, len(data), shape)
    rows = sum(request.rows for request in requests)
    if spec.ragged_axis is not None:
        axis = spec.ragged_axis + 1
        longest = max((request.shapes[position] or shape)[axis] for request in requests)
        shape = (rows, *shape[1:axis], longest, *shape[axis + 1 :])
        return TensorPlace(position, 0, math.prod(shape) * DATATYPES[spec.datatype].itemsize, shape)
    nbytes = sum(len(request.data[position] or b"") for request in requests)
    return TensorPlace(position, 0, nbytes, (rows, *shape[1:]))


def _copy_padded(
    spec: TensorSpec,
    axis: int,
    place: TensorPlace,
    requests: Sequence[RequestTensors],
    memory: memoryview,
) -> None:
    """Copy rows of different lengths along `axis` (batch dimension included in the count)."""
    dtype = DATATYPES[spec.datatype].numpy
    batch = np.frombuffer(memory, dtype, math.prod(place.shape), place.offset).reshape(place.shape)
    longest = place.shape[axis]
    row = 0
    for request in requests:
        shape = request.shapes[place.position] or ()
        own = np.frombuffer(request.data[place.position] or b"", dtype).reshape(shape)
        rows = batch[row : row + request.rows]
        length = shape[axis]
        rows[(slice(None),) * axis + (slice(length),)] = own
        if length < longest:
            rows[(slice(None),) * axis + (slice(length, longest),)] = spec.pad
        row += request.rows

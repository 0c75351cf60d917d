"""Lays the inputs of a batch out in memory: the one copy that a request's bytes make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from headrace.tensors import DATATYPES
from headrace_server.models.making import Array, make
from headrace_server.models.spec import DYNAMIC, MadeInput, TensorSpec
from headrace_server.workers.executor import RequestTensors
from headrace_server.workers.frames import RowParameters, TensorPlace
from headrace_server.workers.regions import Span
from headrace_server.workers.slab import aligned


def gather(
    inputs: Sequence[TensorSpec],
    requests: Sequence[RequestTensors],
    reserve: Callable[[int], memoryview],
    made: Sequence[MadeInput] = (),
) -> tuple[tuple[TensorPlace, ...], tuple[RowParameters, ...] | None]:
    """Copy the inputs of `requests` side by side into the memory that `reserve` gives.

    Every input becomes one contiguous region at an aligned offset. Raw contents are row-major (or
    elements in sequence, for BYTES), so the bytes of requests with equal trailing shape
    concatenate into the bytes of the batch. Ragged inputs are padded to the longest on the way,
    flat ones concatenated whatever their shapes, and those with a default filled in where a
    request left them out. Behind them come the inputs that the server makes.

    Args:
        inputs: the inputs of the model that come with requests.
        requests: at least one; all have the same inputs, but for those with a default, with the
            same trailing shapes, up to the dimension that is padded, but for those that are flat.
        reserve: called once with the number of bytes needed.
        made: the other inputs of the model.

    Returns:
        Where each input lies, and the custom parameters of each request (None when no request
        has any and the inputs show how many rows there are).
    """
    if any(spec.default is not None for spec in inputs):
        requests = [_completed(inputs, request) for request in requests]
    places = [
        _place(position, inputs[position], requests)
        for position, data in enumerate(requests[0].data)
        if data is not None
    ]
    for place in places:
        if inputs[place.position].flat:
            place.row_shapes = _row_shapes(place.position, requests)
    arrays = _made_arrays(inputs, requests, made) if made else []
    places += [
        TensorPlace(len(inputs) + index, 0, array.nbytes, array.shape)
        for index, array in enumerate(arrays)
    ]
    offset = 0
    for place in places:
        place.offset = offset
        offset = aligned(offset + place.nbytes)
    memory = reserve(offset)
    for place in places:
        if place.nbytes == 0:
            continue
        start = place.offset
        if place.position >= len(inputs):
            array = arrays[place.position - len(inputs)]
            memory[start : start + array.nbytes] = array.tobytes()
            continue
        spec = inputs[place.position]
        if spec.ragged_axis is not None and len(requests) > 1:
            _copy_padded(spec, spec.ragged_axis + 1, place, requests, memory)
            continue
        for request in requests:
            data = request.data[place.position] or b""
            end = start + len(data)
            if isinstance(data, Span):
                data.read_into(memory[start:end])
            else:
                memory[start:end] = data
            start = end
    parameters = None
    if any(request.parameters for request in requests) or any(spec.flat for spec in inputs):
        parameters = tuple(RowParameters(r.rows, dict(r.parameters)) for r in requests)
    return tuple(places), parameters


def _place(position: int, spec: TensorSpec, requests: Sequence[RequestTensors]) -> TensorPlace:
    shape = requests[0].shapes[position] or ()
    if spec.flat:
        nbytes = sum(len(request.data[position] or b"") for request in requests)
        elements = sum(math.prod(request.shapes[position] or ()) for request in requests)
        return TensorPlace(position, 0, nbytes, (elements,))
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


def _row_shapes(position: int, requests: Sequence[RequestTensors]) -> tuple[tuple[int, ...], ...]:
    """The shape of each row as its request sent it."""
    return tuple(
        (request.shapes[position] or ())[1:] for request in requests for _ in range(request.rows)
    )


def _made_arrays(
    inputs: Sequence[TensorSpec], requests: Sequence[RequestTensors], made: Sequence[MadeInput]
) -> list[Array]:
    positions = {spec.name: position for position, spec in enumerate(inputs)}
    arrays = []
    for entry in made:
        source = positions[entry.source]
        shapes = [request.shapes[source] or () for request in requests]
        arrays.append(make(entry, inputs[source], shapes))
    return arrays


def _completed(inputs: Sequence[TensorSpec], request: RequestTensors) -> RequestTensors:
    """Fill in what the request left out and has a default, as long as its other inputs."""
    missing = [
        position
        for position, data in enumerate(request.data)
        if data is None and inputs[position].default is not None
    ]
    if not missing:
        return request
    data, shapes = list(request.data), list(request.shapes)
    length = next(
        (
            shape[axis + 1]
            for spec, shape in zip(inputs, request.shapes, strict=True)
            if shape is not None and (axis := spec.ragged_axis) is not None
        ),
        0,
    )
    for position in missing:
        spec = inputs[position]
        shape = (request.rows, *(length if dim == DYNAMIC else dim for dim in spec.shape))
        shapes[position] = shape
        data[position] = np.full(shape, spec.default, DATATYPES[spec.datatype].numpy).tobytes()
    return RequestTensors(request.rows, data, shapes, request.parameters, request.spans)


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
        data = request.data[place.position] or b""
        # Rows that are scattered are read as a whole first: one copy more than elsewhere.
        own = np.frombuffer(data.contents() if isinstance(data, Span) else data, dtype)
        own = own.reshape(shape)
        rows = batch[row : row + request.rows]
        length = shape[axis]
        rows[(slice(None),) * axis + (slice(length),)] = own
        if length < longest:
            rows[(slice(None),) * axis + (slice(length, longest),)] = spec.pad
        row += request.rows

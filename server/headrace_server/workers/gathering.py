"""Lays the inputs of a batch out in memory: the one copy that a request's bytes make."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace_server.workers.executor import Parameter, RequestTensors
from headrace_server.workers.frames import TensorPlace
from headrace_server.workers.slab import aligned


def gather(
    requests: Sequence[RequestTensors], reserve: Callable[[int], memoryview]
) -> tuple[tuple[TensorPlace, ...], tuple[dict[str, Parameter], ...] | None]:
    """Copy the inputs of `requests` side by side into the memory that `reserve` gives.

    Every input becomes one contiguous region at an aligned offset. Raw contents are row-major (or
    elements in sequence, for BYTES), so the bytes of requests with equal trailing shape
    concatenate into the bytes of the batch.

    Args:
        requests: at least one; all have the same inputs with the same trailing shapes.
        reserve: called once with the number of bytes needed.

    Returns:
        Where each input lies, and one mapping of custom parameters per row (None when no request
        has any).
    """
    first = requests[0]
    alone = len(requests) == 1
    rows = sum(request.rows for request in requests)
    places = []
    offset = 0
    for position, data in enumerate(first.data):
        if data is None:
            continue
        nbytes = len(data) if alone else sum(len(r.data[position] or b"") for r in requests)
        shape = first.shapes[position] or ()
        if not alone:
            shape = (rows, *shape[1:])
        places.append(TensorPlace(position, offset, nbytes, shape))
        offset = aligned(offset + nbytes)
    memory = reserve(offset)
    for place in places:
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

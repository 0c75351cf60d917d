"""What decides who can ride with whom: a request's batch key and its length, from its shapes."""

from __future__ import annotations

import math
from collections.abc import Hashable

from headrace_server.core.errors import Reason, ServingError
from headrace_server.models.spec import DYNAMIC, ModelSpec
from headrace_server.workers.executor import RequestTensors


class RidingRules:
    """Batch keys and lengths of one model's requests, compiled once from its spec.

    Two requests ride together when they have the same inputs with the same trailing dimensions;
    dimensions that the server pads may differ. The length is what padding and cost depend on:
    that of the ragged inputs, which is one for all of a request (a mask of another length than
    its data would fail the whole batch), or the dynamic elements of a row where nothing is ragged.
    """

    def __init__(self, spec: ModelSpec) -> None:
        inputs = spec.batched_inputs
        self._model = spec.name
        self._names = [tensor.name for tensor in inputs]
        # A request without a batch dimension rides alone, whatever its key.
        self._skip = 1 if spec.max_batch_size else 0
        self._ragged = {
            position: axis + self._skip
            for position, tensor in enumerate(inputs)
            if (axis := tensor.ragged_axis) is not None
        }
        self._dynamic = [
            (position, [axis + self._skip for axis, dim in enumerate(t.shape) if dim == DYNAMIC])
            for position, t in enumerate(inputs)
            if DYNAMIC in t.shape and not self._ragged
        ]
        fixed = all(DYNAMIC not in tensor.shape for tensor in inputs)
        self._trivial = fixed and not any(tensor.optional for tensor in inputs)

    def of(self, tensors: RequestTensors) -> tuple[Hashable, int]:
        """The batch key and the length of a request.

        Raises:
            ServingError: UNEQUAL_LENGTHS.
        """
        if self._trivial:
            return None, 0
        length: int | None = None
        key: list[tuple[int, ...] | None] = []
        for position, shape in enumerate(tensors.shapes):
            if shape is None:
                key.append(None)
                continue
            trailing = shape[self._skip :]
            axis = self._ragged.get(position)
            if axis is not None:
                if length not in (None, shape[axis]):
                    raise ServingError(
                        Reason.UNEQUAL_LENGTHS,
                        model=self._model,
                        input=self._names[position],
                        expected=length,
                        got=shape[axis],
                    )
                length = shape[axis]
                at = axis - self._skip
                trailing = (*trailing[:at], DYNAMIC, *trailing[at + 1 :])
            key.append(trailing)
        for position, axes in self._dynamic:
            given = tensors.shapes[position]
            if given is not None:
                length = max(length or 0, math.prod(given[axis] for axis in axes))
        return tuple(key), length or 0

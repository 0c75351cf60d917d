"""What decides who can ride with whom: a request's batch key and its length, from its shapes."""

from __future__ import annotations

import math
from collections.abc import Hashable

from headrace_server.core.errors import Reason, ServingError
from headrace_server.models.spec import DYNAMIC, ModelSpec
from headrace_server.workers.executor import RequestTensors

_GIVEN = ()
"""In a batch key: the input is there, and its shape keeps nobody apart."""


class RidingRules:
    """Batch keys and lengths of one model's requests, compiled once from its spec.

    Two requests ride together when they have the same inputs with the same trailing dimensions.
    Dimensions that the server pads may differ, and inputs that it concatenates or has a default
    for do not count. The length is what padding and cost depend on: that of the ragged inputs,
    which is one for all of a request (a mask of another length than its data would fail the whole
    batch), or the dynamic elements of a row where nothing is ragged. Concatenated inputs have
    none: there nobody pads anybody.
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
        self._dynamic = {
            position: [axis + self._skip for axis, dim in enumerate(tensor.shape) if dim == DYNAMIC]
            for position, tensor in enumerate(inputs)
            if not (tensor.fixed or tensor.flat or position in self._ragged)
        }
        # Left out, an input with a default counts like one that was given.
        self._absent = [None if tensor.default is None else _GIVEN for tensor in inputs]
        self._trivial = not (self._ragged or self._dynamic) and all(
            not tensor.optional or tensor.default is not None for tensor in inputs
        )

    def of(self, tensors: RequestTensors) -> tuple[Hashable, int]:
        """The batch key and the length of a request.

        Raises:
            ServingError: UNEQUAL_LENGTHS.
        """
        if self._trivial:
            return None, 0
        length: int | None = None
        elements = 0
        key: list[tuple[int, ...] | None] = []
        for position, shape in enumerate(tensors.shapes):
            if shape is None:
                key.append(self._absent[position])
                continue
            axes = self._dynamic.get(position)
            if axes is not None:
                key.append(shape[self._skip :])
                elements = max(elements, math.prod(shape[axis] for axis in axes))
                continue
            key.append(_GIVEN)
            axis = self._ragged.get(position)
            if axis is None:
                continue
            if length not in (None, shape[axis]):
                raise ServingError(
                    Reason.UNEQUAL_LENGTHS,
                    model=self._model,
                    input=self._names[position],
                    dimension=axis,
                    expected=length,
                    got=shape[axis],
                )
            length = shape[axis]
        return tuple(key), elements if length is None else length

"""Makes the inputs that no client sends: masks of padded inputs, and Triton's batch inputs.

Front-safe: needs numpy, never torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.tensors import DATATYPES
from headrace_server.models.spec import DYNAMIC, MadeInput, Making, TensorSpec

Array = npt.NDArray[Any]


def make(made: MadeInput, source: TensorSpec, shapes: Sequence[Sequence[int]]) -> Array:
    """Make an input for one batch.

    Args:
        made: what to make.
        source: the input that it is made from.
        shapes: the shape of that input in each request of the batch, batch dimension included.

    Returns:
        One array for the whole batch: a mask with its rows and the longest length, or what
        Triton's backends would be given. The contents of a MAX_ELEMENT_COUNT_AS_SHAPE mean
        nothing and are zeros.
    """
    dtype = DATATYPES[made.tensor.datatype].numpy
    if made.making is Making.MASK:
        axis = source.ragged_axis
        assert axis is not None, "masks are made of ragged inputs"
        return _mask(made.tensor, dtype, [(shape[0], shape[axis + 1]) for shape in shapes])
    counts = [math.prod(shape) for shape in shapes]
    items = [list(shape[1:]) for shape in shapes for _ in range(shape[0])]
    match made.making:
        case Making.ELEMENT_COUNT:
            values: Any = counts
        case Making.ACCUMULATED_ELEMENT_COUNT:
            values = list(accumulate(counts))
        case Making.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO:
            values = list(accumulate(counts, initial=0))
        case Making.MAX_ELEMENT_COUNT_AS_SHAPE:
            values = np.zeros(max(counts))
        case Making.ITEM_SHAPE:
            values = items
        case Making.ITEM_SHAPE_FLATTEN:
            values = [dim for item in items for dim in item]
    return np.asarray(values, dtype)


def _mask(tensor: TensorSpec, dtype: Any, sizes: Sequence[tuple[int, int]]) -> Array:
    """1 in so many rows up to so many elements along the dynamic dimension, 0 behind."""
    longest = max(length for _, length in sizes)
    dims = [longest if dim == DYNAMIC else dim for dim in tensor.shape]
    mask = np.zeros((sum(rows for rows, _ in sizes), *dims), dtype)
    along = (slice(None),) * tensor.shape.index(DYNAMIC)
    first = 0
    for rows, length in sizes:
        mask[first : first + rows][(slice(None), *along, slice(length))] = 1
        first += rows
    return mask

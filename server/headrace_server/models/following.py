"""Finds out which dimensions of a model's answers follow the length that requests are padded to.

A dynamic dimension may be the length of the padded batch, to be cut back for each request, or have
nothing to do with it, as the number of the best labels. Its length in one batch cannot tell: both
may be 8. Workers only: imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from headrace_server.models.errors import described
from headrace_server.models.loading import LoadedModel
from headrace_server.models.program import Tensor
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.models.torch_types import TORCH_DTYPES
from headrace_server.models.warmup import DEFAULT_LENGTH, example_shape

log = logging.getLogger("headrace.models")


def with_following(model: LoadedModel) -> ModelSpec:
    """Return the model's spec with the dimensions of its outputs that follow the padded length.

    Those do that are as long as the batch in two batches of different lengths, of one row of ones
    each: zeros may be padding to the model. Where it cannot stand them, or takes but one length,
    the spec stays as it is.
    """
    spec = model.spec
    ragged = [tensor for tensor in spec.batched_inputs if tensor.pad is not None]
    axes = spec.dynamic_outputs
    lengths = _two_lengths(ragged)
    if not ragged or not any(axes) or lengths[0] == lengths[1]:
        return spec
    for length in lengths:
        try:
            answer = model.run_rows(_ones(model, length))
        except Exception as error:
            log.warning(
                "whatever is as long as a padded batch is cut back in answers: on ones of length "
                "%d the model could not be tried: %s",
                *(length, described(error)),
            )
            return spec
        axes = tuple(
            tuple(axis for axis in found if answer[tensor.name].shape[axis + 1] == length)
            for tensor, found in zip(spec.outputs, axes, strict=True)
        )
    return replace(spec, following=axes)


def _two_lengths(ragged: Sequence[TensorSpec]) -> tuple[int, int]:
    """Lengths that all ragged inputs admit, different ones if there are such."""
    longer, shorter = 3 * DEFAULT_LENGTH // 2, DEFAULT_LENGTH
    for tensor in ragged:
        longer = _nearest(tensor, longer)
    shorter = min(shorter, max(1, longer - 1))
    for tensor in ragged:
        shorter = _nearest(tensor, shorter)
    return shorter, longer


def _nearest(tensor: TensorSpec, length: int) -> int:
    assert tensor.ragged_axis is not None
    return tensor.nearest([length] * len(tensor.shape))[tensor.ragged_axis]


def _ones(model: LoadedModel, length: int) -> dict[str, Tensor]:
    """One row of every input, on the model's device; BYTES are empty."""
    inputs: dict[str, Tensor] = {}
    for tensor in model.spec.batched_inputs:
        shape = [1, *example_shape(tensor, model.example_shapes)]
        if tensor.ragged_axis is not None:
            shape[1 + tensor.ragged_axis] = length
        if tensor.datatype == "BYTES":
            inputs[tensor.name] = np.full(shape, b"", dtype=object)
        else:
            dtype = TORCH_DTYPES[tensor.datatype]
            inputs[tensor.name] = torch.ones(shape, dtype=dtype, device=model.device)
    return inputs

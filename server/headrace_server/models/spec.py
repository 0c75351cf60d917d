"""What a model takes and gives: the pure descriptions that travel from a worker to the front.

No torch, numpy or grpc here: the front process reads these, and it never imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

DYNAMIC = -1
"""A dimension whose length each request chooses."""

DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)
"""Every datatype of the protocol."""


class Role(Enum):
    """What a worker does with a model: run its batches, or prepare single requests for them."""

    SERVE = "serve"
    PREPARE = "prepare"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output.

    ``datatype`` is a protocol name (``FP32``, ``INT64``, ``BYTES``, ...). ``shape`` leaves out the
    batch dimension when the model has one; -1 marks a dynamic dimension. ``optional`` inputs may
    be left out of a request.

    ``pad`` makes an input *ragged*: requests of different lengths ride in one batch, and the
    shorter ones are filled up with this value along the one dynamic dimension. The model has to
    tell padding from data by a mask: another ragged input with ``pad=0`` that clients send, or
    one with ``mask_of`` that they do not. All ragged inputs of a request have the same length.
    Dynamic dimensions of outputs that follow it (`ModelSpec.following`) are cut back to it.

    ``mask_of`` names a ragged input: this input is then no client's business but made by the
    server for each batch, 1 along its dynamic dimension where a request has data, 0 where it was
    padded. That input needs no ``pad`` of its own, it is padded with 0.

    ``default`` makes an input optional without keeping requests apart: where it was left out, it
    is filled with this value. Its dimensions are fixed, or one is dynamic and padded.

    ``flat`` inputs and outputs that are ``shaped_like`` an input are Triton's ragged batch
    (``allow_ragged_batch``, ``batch_output``): the elements of all requests one after the other
    in one dimension, not padded; an answer takes as many of them as it has in the shape of that
    input.

    ``bounds`` holds the least and the greatest length of each dimension (-1: none), where the
    dynamic ones are limited; empty where none is. Requests beyond them are refused.

    Raises ValueError for what makes no sense: an empty name, an unknown datatype, a dimension
    below -1, a ``pad`` where there is not exactly one dynamic dimension, a value that the
    datatype cannot hold, bounds for another number of dimensions, or that no length is within.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    optional: bool = False
    pad: float | None = None
    bounds: Sequence[tuple[int, int]] = ()
    mask_of: str = ""
    default: float | None = None
    flat: bool = False
    shaped_like: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(dim) for dim in self.shape))
        object.__setattr__(self, "bounds", tuple((low, high) for low, high in self.bounds))
        if self.bounds and len(self.bounds) != len(self.shape):
            raise ValueError(
                f"tensor '{self.name}': expected bounds for {len(self.shape)} dimensions, "
                f"got {len(self.bounds)}"
            )
        for low, high in self.bounds:
            if low < 0 or (high != DYNAMIC and high < low):
                raise ValueError(
                    f"tensor '{self.name}': expected bounds (least, greatest) with 0 <= least <= "
                    f"greatest, or greatest -1, got {(low, high)}"
                )
        if not self.name:
            raise ValueError("expected the name of a tensor, got an empty one")
        if self.datatype not in DATATYPES:
            raise ValueError(
                f"tensor '{self.name}': expected a datatype among {', '.join(DATATYPES)}, "
                f"got '{self.datatype}'"
            )
        if any(dim < DYNAMIC for dim in self.shape):
            raise ValueError(f"tensor '{self.name}': dimensions are >= 0 or -1, got {self.shape}")
        one_dynamic = self.shape.count(DYNAMIC) == 1
        if self.pad is not None:
            self._check_filling("pad", self.pad, "exactly one dynamic dimension", one_dynamic)
        if self.mask_of:
            self._check_filling("mask_of", 0, "exactly one dynamic dimension", one_dynamic)
        if self.default is not None:
            fits = self.fixed or self.pad is not None
            self._check_filling("default", self.default, "fixed dimensions, or a pad,", fits)
        if self.default is not None:
            object.__setattr__(self, "optional", True)

    def _check_filling(self, what: str, value: float, needs: str, fits: bool) -> None:
        if not fits or self.flat or self.datatype in ("BYTES", "BF16"):
            flat = ", flat" if self.flat else ""
            raise ValueError(
                f"tensor '{self.name}': {what} needs {needs} and a datatype "
                f"other than BYTES and BF16, got {self.datatype} {list(self.shape)}{flat}"
            )
        if self.mask_of and what != "mask_of":
            raise ValueError(f"tensor '{self.name}': a mask is made whole, {what} has no meaning")
        if not _holds(self.datatype, value):
            raise ValueError(
                f"tensor '{self.name}': expected a {what} that {self.datatype} holds, got {value}"
            )

    @property
    def ragged_axis(self) -> int | None:
        """The dimension that is padded, the batch dimension not counted; None if none is."""
        return None if self.pad is None else self.shape.index(DYNAMIC)

    def admits(self, lengths: Sequence[int]) -> bool:
        """Whether a request may have these lengths, those of the batch dimension not included."""
        return (
            len(lengths) == len(self.shape)
            and all(
                got >= 0 and want in (DYNAMIC, got)
                for want, got in zip(self.shape, lengths, strict=True)
            )
            and all(
                low <= got and (high == DYNAMIC or got <= high)
                for (low, high), got in zip(self.bounds, lengths, strict=False)
            )
        )

    def nearest(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """The lengths that it admits and that are closest to these."""
        bounds = self.bounds or [(0, DYNAMIC)] * len(self.shape)
        return tuple(
            dim if dim != DYNAMIC else max(low, length if high == DYNAMIC else min(length, high))
            for dim, length, (low, high) in zip(self.shape, lengths, bounds, strict=True)
        )

    def described(self, *, batched: bool) -> str:
        """The shape as errors show it: -1 for any length, low..high for a limited one."""
        dims = [str(dim) for dim in self.shape]
        for index, (low, high) in enumerate(self.bounds):
            if self.shape[index] == DYNAMIC and (low, high) != (0, DYNAMIC):
                dims[index] = f"{low}..{'' if high == DYNAMIC else high}"
        return f"[{', '.join(['-1', *dims] if batched else dims)}]"

    @property
    def fixed(self) -> bool:
        """Whether no dimension is left to the requests."""
        return DYNAMIC not in self.shape

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


_GREATEST = {"FP16": 65_504.0, "FP32": 3.4028234e38, "FP64": math.inf}
_WHOLE = re.compile(r"(U?)INT(\d+)")
_EXACT = 2**53
"""Up to here every whole number comes through a frame, as a float, unchanged."""


def _holds(datatype: str, value: float) -> bool:
    """Whether an element of this type can have the value; infinity, but not NaN, where it floats.

    NaN differs from itself, and so would every spec that contains one.
    """
    if datatype == "BOOL":
        return value in (0, 1)
    whole = _WHOLE.fullmatch(datatype)
    if whole is None:
        return value in (math.inf, -math.inf) or abs(value) <= _GREATEST[datatype]
    greatest = 2 ** (int(whole[2]) - (0 if whole[1] else 1)) - 1
    least = 0 if whole[1] else -greatest - 1
    return max(least, -_EXACT) <= value <= min(greatest, _EXACT) and value == int(value)


class Making(Enum):
    """How the server makes an input for a batch. All but MASK are kinds of Triton's batch input.

    Counts are those of the elements of one request, all its rows together; shapes are those of
    one row.
    """

    MASK = "MASK"
    ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_ELEMENT_COUNT_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
    ITEM_SHAPE = "BATCH_ITEM_SHAPE"
    ITEM_SHAPE_FLATTEN = "BATCH_ITEM_SHAPE_FLATTEN"


@dataclass(frozen=True, slots=True)
class MadeInput:
    """An input that no client sends: the server makes it from another one, for each batch.

    The shape of a mask leaves out the batch dimension; that of the others is complete.
    """

    tensor: TensorSpec
    making: Making
    source: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The signature of one version of a model, complete: nothing is left to be guessed.

    ``max_batch_size`` 0 means that the model has no batch dimension: requests carry full shapes
    and each runs alone. Above 0, every tensor has a leading batch dimension that the tensor
    specs leave out, and a request may carry 1 to ``max_batch_size`` rows.

    ``prepared`` is what the model's own ``prepare`` makes of the inputs of each request, before
    they queue; empty for models without that stage.

    ``made`` are the inputs that the server makes, from the prepared ones where there are any.

    ``one_length`` are groups of dimensions (name of an input, index in its shape) that are the
    same in each request, whatever they are. Requests that differ there are refused.

    ``following`` are, for each output, the dimensions that are as long as the padded batch; where
    nothing is known (None), any dynamic one may be. A finding, not part of the signature: specs
    that differ in it alone are equal.
    """

    name: str
    version: int
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    prepared: tuple[TensorSpec, ...] = ()
    made: tuple[MadeInput, ...] = ()
    one_length: tuple[tuple[tuple[str, int], ...], ...] = ()
    following: tuple[tuple[int, ...], ...] | None = field(default=None, compare=False)

    @property
    def batched_inputs(self) -> tuple[TensorSpec, ...]:
        """What a batch consists of: the prepared inputs where there are any."""
        return self.prepared or self.inputs

    def with_batched_inputs(self, inputs: Sequence[TensorSpec]) -> ModelSpec:
        """Return the same signature with other `batched_inputs`."""
        if self.prepared:
            return replace(self, prepared=tuple(inputs))
        return replace(self, inputs=tuple(inputs))

    @property
    def model_inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes: `batched_inputs` and behind them what the server makes."""
        return (*self.batched_inputs, *(made.tensor for made in self.made))

    @property
    def dynamic_outputs(self) -> tuple[tuple[int, ...], ...]:
        """For each output the dimensions that may follow the padded length, if there is one."""
        return tuple(
            tuple(axis for axis, dim in enumerate(tensor.shape) if dim == DYNAMIC)
            if tensor.datatype != "BYTES" and not tensor.shaped_like
            else ()
            for tensor in self.outputs
        )

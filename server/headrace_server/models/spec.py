"""What a model takes and gives: the pure descriptions that travel from a worker to the front.

No torch, numpy or grpc here: the front process reads these, and it never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    tell padding from data by itself, usually with a mask: another ragged input with ``pad=0``.
    Outputs of the model with a dynamic dimension are cut back to each request's own length.

    ``bounds`` holds the least and the greatest length of each dimension (-1: none), where the
    dynamic ones are limited; empty where none is. Requests beyond them are refused.

    Raises ValueError for an empty name, an unknown datatype, a dimension below -1, a ``pad``
    where there is not exactly one dynamic dimension, bounds for another number of dimensions, or
    bounds that no length is within.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    optional: bool = False
    pad: float | None = None
    bounds: Sequence[tuple[int, int]] = ()

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
        if self.pad is not None and (
            self.shape.count(DYNAMIC) != 1 or self.datatype in ("BYTES", "BF16")
        ):
            raise ValueError(
                f"tensor '{self.name}': pad needs exactly one dynamic dimension and a datatype "
                f"other than BYTES and BF16, got {self.datatype} {list(self.shape)}"
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

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The signature of one version of a model, complete: nothing is left to be guessed.

    ``max_batch_size`` 0 means that the model has no batch dimension: requests carry full shapes
    and each runs alone. Above 0, every tensor has a leading batch dimension that the tensor
    specs leave out, and a request may carry 1 to ``max_batch_size`` rows.

    ``prepared`` is what the model's own ``prepare`` makes of the inputs of each request, before
    they queue; empty for models without that stage.
    """

    name: str
    version: int
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    prepared: tuple[TensorSpec, ...] = ()

    @property
    def batched_inputs(self) -> tuple[TensorSpec, ...]:
        """What a batch consists of: the prepared inputs where there are any."""
        return self.prepared or self.inputs

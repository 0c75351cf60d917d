"""What a model takes and gives: the pure descriptions that travel from a worker to the front.

No torch, numpy or grpc here: the front process reads these, and it never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DYNAMIC = -1
"""A dimension whose length each request chooses."""

DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)
"""Every datatype of the protocol."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output.

    ``datatype`` is a protocol name (``FP32``, ``INT64``, ``BYTES``, ...). ``shape`` leaves out the
    batch dimension when the model has one; -1 marks a dynamic dimension. ``optional`` inputs may
    be left out of a request.

    Raises ValueError for an empty name, an unknown datatype or a dimension below -1.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    optional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(dim) for dim in self.shape))
        if not self.name:
            raise ValueError("expected the name of a tensor, got an empty one")
        if self.datatype not in DATATYPES:
            raise ValueError(
                f"tensor '{self.name}': expected a datatype among {', '.join(DATATYPES)}, "
                f"got '{self.datatype}'"
            )
        if any(dim < DYNAMIC for dim in self.shape):
            raise ValueError(f"tensor '{self.name}': dimensions are >= 0 or -1, got {self.shape}")

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The signature of one version of a model, complete: nothing is left to be guessed.

    ``max_batch_size`` 0 means that the model has no batch dimension: requests carry full shapes
    and each runs alone. Above 0, every tensor has a leading batch dimension that the tensor
    specs leave out, and a request may carry 1 to ``max_batch_size`` rows.
    """

    name: str
    version: int
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

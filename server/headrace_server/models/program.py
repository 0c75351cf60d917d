"""What a loader makes of a model file: the interface between the loaders and `LoadedModel`.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from headrace_server.models.spec import ModelSpec

Tensor: TypeAlias = torch.Tensor | npt.NDArray[Any]
"""A torch tensor, or a numpy object array of `bytes` where the datatype is BYTES."""

Inputs: TypeAlias = Mapping[str, Tensor]
Parameters: TypeAlias = Sequence[Mapping[str, bool | int | float | str]]
"""The custom parameters of a batch: one mapping per row."""

BytesArray: TypeAlias = npt.NDArray[np.object_]


class Program(Protocol):
    """One loaded model file on one device."""

    @property
    def spec(self) -> ModelSpec:
        """The complete signature."""
        ...

    @property
    def example_shapes(self) -> Mapping[str, Sequence[int]]:
        """Shapes that the program surely takes, without the batch dimension; may be empty."""
        ...

    @property
    def overwrites_outputs(self) -> bool:
        """Whether a call may write to tensors that an earlier one returned, or nobody knows."""
        ...

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        """Run one batch; the answer is whatever the program returns."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...

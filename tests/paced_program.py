"""A model whose batches take as long as the test says, by a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from headrace_server.models.loading import LoadedModel
from headrace_server.models.program import Inputs, Parameters
from headrace_server.models.spec import ModelSpec, TensorSpec

Y = (TensorSpec("y", "FP32", [1]),)


def spec_of(*inputs: TensorSpec, max_batch_size: int = 16) -> ModelSpec:
    """A model with these inputs and one output."""
    return ModelSpec("model", 1, "test", max_batch_size, inputs, Y)


class PacedProgram:
    """Takes `seconds(rows, length)` for a batch, length being that of the first input's rows;
    raises what that raises. `shapes` lists what the first input was in each run, `last` holds all
    inputs of the last one."""

    example_shapes: Mapping[str, Sequence[int]] = {}

    def __init__(self, spec: ModelSpec, seconds: Callable[[int, int], float]) -> None:
        self.spec = spec
        self.seconds = seconds
        self.shapes: list[tuple[int, ...]] = []
        self.last: Inputs = {}
        self.now_s = 0.0

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        shape = tuple(next(iter(inputs.values())).shape)
        self.shapes.append(shape)
        self.last = inputs
        rows = 1
        if self.spec.max_batch_size:
            rows = shape[0] if parameters is None else len(parameters)
        self.now_s += self.seconds(rows, shape[1] if len(shape) > 1 else 0)
        return torch.zeros(rows, 1) if self.spec.max_batch_size else torch.zeros(1)

    def close(self) -> None:
        pass

    def clock(self) -> float:
        """What `perf_counter` would say."""
        return self.now_s

    def loaded(self) -> LoadedModel:
        """The model as a worker has it."""
        return LoadedModel(self, "cpu")

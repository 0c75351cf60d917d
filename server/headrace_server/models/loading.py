"""Loads a model file on a device, whatever its kind, and runs it with its answers checked.

Pickled Python objects run code of whoever wrote the file. They are refused, with torch's own
switch for that, unless the operator allows them for this model by name.

Workers only: imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError

import torch

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.answers import checked_outputs
from headrace_server.models.errors import ModelError
from headrace_server.models.exported import load_exported
from headrace_server.models.load_options import load_options
from headrace_server.models.making import make
from headrace_server.models.program import Inputs, Parameters, Program, Tensor
from headrace_server.models.python_model import load_python
from headrace_server.models.repository import ModelKind, ModelSource
from headrace_server.models.spec import ModelSpec, Role
from headrace_server.models.torchscript import load_torchscript


class LoadedModel:
    """One instance of a model, ready to run. Called from one thread, with valid inputs.

    One that ``compiles_when_called`` is compiled by its first batches: the warm-up's.
    """

    def __init__(
        self, program: Program, device: str, *, compiles_when_called: bool = False
    ) -> None:
        self.program = program
        self.device = device
        self.compiles_when_called = compiles_when_called

    @property
    def spec(self) -> ModelSpec:
        """The complete signature."""
        return self.program.spec

    @property
    def example_shapes(self) -> Mapping[str, Sequence[int]]:
        """Input shapes that the model surely takes, without the batch dimension; may be empty."""
        return self.program.example_shapes

    def run(self, inputs: Inputs, parameters: Parameters | None = None) -> dict[str, Tensor]:
        """Run one batch, without gradients.

        Args:
            inputs: by name, on the model's device; with a batch dimension all of equal length,
                but for those of Triton's ragged batches.
            parameters: custom parameters of each row, for models that want them; necessary where
                the inputs do not show how many rows there are.

        Returns:
            Every output of the spec: a torch tensor, or for BYTES a numpy object array of `bytes`.

        Raises:
            ModelError: the answer does not fit the spec.
            Exception: whatever the model raises.
        """
        with torch.inference_mode():
            answer = self.program.call(inputs, parameters)
        spec = self.program.spec
        rows = None
        if spec.max_batch_size:
            first = next(iter(inputs.values()))
            rows = first.shape[0] if parameters is None else len(parameters)
        return checked_outputs(spec, answer, rows)

    def run_rows(self, inputs: Inputs) -> dict[str, Tensor]:
        """Like `run` for a batch in which every row is a request of its own.

        The inputs are those of `ModelSpec.batched_inputs`, all with a batch dimension if the model
        has one; what is to be concatenated and what the server makes is done here.
        """
        spec = self.program.spec
        known = {tensor.name: tensor for tensor in spec.batched_inputs}
        complete: dict[str, Tensor] = {}
        parameters: Parameters | None = None
        for name, value in inputs.items():
            complete[name] = value
            if known[name].flat:
                complete[name] = value.reshape(-1)
                parameters = [{}] * value.shape[0]
        for made in spec.made:
            shape = tuple(inputs[made.source].shape)
            array = make(made, known[made.source], [(1, *shape[1:])] * shape[0])
            complete[made.tensor.name] = torch.from_numpy(array).to(self.device)
        return self.run(complete, parameters)

    def close(self) -> None:
        """Release the model; it is not run again."""
        self.program.close()


def load_model(
    source: ModelSource,
    config: ModelConfig | None,
    device: str,
    role: Role = Role.SERVE,
    weights: int | None = None,
) -> LoadedModel:
    """Load ``source`` on ``device`` (``cpu``, ``cuda:0``) and reconcile it with ``config``.

    ``weights`` as in `load_exported`; models of other kinds keep their own. From then on
    `torch.load` takes plain tensors alone in this process, whatever its caller asks for, unless
    ``source.pickle``.

    Raises:
        ModelError: the file is missing, damaged, or not what its name says, or holds pickled
            objects that it may not load.
        ConfigError: the configuration contradicts the model.
    """
    if not source.file.is_file():
        raise ModelError(f"expected a model file, found nothing at {source.file}")
    os.environ[FORCE_WEIGHTS_ONLY] = "0" if source.pickle else "1"
    with _refusing_pickle(source):
        if source.kind is ModelKind.PYTHON:
            compiles = role is Role.SERVE and bool(load_options(config).compile)
            program = load_python(source, config, device, role)
            return LoadedModel(program, device, compiles_when_called=compiles)
        if source.kind is ModelKind.EXPORTED:
            return LoadedModel(load_exported(source, config, device, weights), device)
        return LoadedModel(load_torchscript(source, config, device), device)


FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Goes before the `weights_only=False` that torch.export.load itself gives for some tensors."""


@contextmanager
def _refusing_pickle(source: ModelSource) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        causes = [error, error.__cause__, error.__context__]
        if source.pickle or not any(isinstance(cause, UnpicklingError) for cause in causes):
            raise
        raise ModelError(
            f"{source.file}: holds pickled Python objects, which run code of whoever wrote them; "
            f"expected plain tensors, or a server started with --allow-pickle {source.name}"
        ) from error

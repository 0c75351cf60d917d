"""Loads `model.pt`: TorchScript, with the names, types and shapes that its config.pbtxt gives.

A script runs in an interpreter of its own, without access to Python, and `torch.jit.load` unpickles
no Python objects: loading runs no Python of its author. The script may still call any operator
that torch has, so it deserves the trust of a model, not that of a stranger's upload.

Workers only: imports torch.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headrace.protocol.model_config_pb2 import DataType, ModelConfig
from headrace_server.models.config_text import locate_in
from headrace_server.models.errors import ConfigError, ModelError
from headrace_server.models.load_options import load_options
from headrace_server.models.program import Inputs, Parameters, Program
from headrace_server.models.ragged import RaggedRules, read_rules, with_ragged_inputs
from headrace_server.models.repository import ModelSource
from headrace_server.models.signature import positions, spec_from_config
from headrace_server.models.spec import ModelSpec

PLATFORM = "pytorch_libtorch"

_MEMBERS = re.compile(r"Tuple\[(.*)\]")


def load_torchscript(source: ModelSource, config: ModelConfig | None, device: str) -> Program:
    """Load the script and tie its arguments and results to the configuration's names.

    Inputs are called `<any>__<i>` by their position, or like the arguments of `forward`; where
    they are neither, the configuration's order counts. Outputs are called `<any>__<i>`, or by the
    keys of the dict that `forward` returns; else, again, the configuration's order counts.

    Raises:
        ModelError: the file is no TorchScript, or its `forward` needs something else than tensors.
        ConfigError: the configuration has no inputs or outputs (the error contains one to start
            from), or they do not fit the script.
    """
    options = load_options(config)
    if options:
        raise ConfigError(
            f"{source.config_file}: '{options}' is for exported programs and models in Python; "
            "TorchScript runs as it is"
        )
    module = _load(source, device)
    # The first argument is the module itself, whatever its author called it.
    arguments = module.forward.schema.arguments[1:]
    for argument in arguments:
        if str(argument.type) != "Tensor" and not argument.has_default_value():
            raise ModelError(
                f"{source.file}: expected a forward that takes tensors, its argument "
                f"'{argument.name}' is {argument.type}"
            )
    tensors = [argument.name for argument in arguments if str(argument.type) == "Tensor"]
    returned = _returned(module)
    if config is None or not config.input or not config.output:
        raise ConfigError(
            f"{source.config_file}: TorchScript carries no types and shapes; expected a config "
            f"like this, with yours:\n{_skeleton(source, tensors, returned)}"
        )
    rules = read_rules(source, config)
    _check(source, config, rules, returned)
    required = sum(not argument.has_default_value() for argument in arguments)
    names = [tensor.name for tensor in config.input]
    names += [made.tensor.name for made in rules.batch_inputs]
    order = _input_order(source, names, tensors, required)
    spec = with_ragged_inputs(spec_from_config(source, config, PLATFORM), rules)
    return TorchScriptModel(module, spec, order)


class TorchScriptModel:
    """A scripted or traced module that takes inputs by the names of its spec."""

    example_shapes: Mapping[str, Sequence[int]] = {}
    overwrites_outputs = True

    def __init__(self, module: torch.jit.ScriptModule, spec: ModelSpec, order: list[str]) -> None:
        self._module: torch.jit.ScriptModule | None = module
        self._order = order
        self._names = [output.name for output in spec.outputs]
        self._positions = positions(self._names) or list(range(len(self._names)))
        self.spec = spec

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        """See `Program.call`. Results that the configuration does not name are dropped."""
        assert self._module is not None, "the model is closed"
        answer = self._module(*[inputs[name] for name in self._order])
        if isinstance(answer, Mapping):
            return {name: answer[name] for name in self._names if name in answer}
        results = answer if isinstance(answer, tuple | list) else (answer,)
        if max(self._positions) >= len(results):
            raise ModelError(f"expected the outputs {self._names}, got {len(results)} results")
        return tuple(results[position] for position in self._positions)

    def close(self) -> None:
        """See `Program.close`."""
        self._module = None


def _load(source: ModelSource, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"`torch\.jit\.load` is deprecated", category=DeprecationWarning
        )
        try:
            # Scripts saved while training would drop out neurons at random.
            return torch.jit.load(str(source.file), map_location=device).eval()  # type: ignore[no-untyped-call]
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            got = f"{type(error).__name__}: {first_line}"
            if _holds_no_code(source.file):
                got = "what torch.save writes: export the model, or load its weights in a model.py"
            raise ModelError(
                f"{source.file}: expected TorchScript saved by torch.jit.save, got {got}"
            ) from error


def _holds_no_code(file: Path) -> bool:
    """Whether this is an archive of objects, a state_dict say, and of no program."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return any(n.endswith("/data.pkl") for n in names) and not any("/code/" in n for n in names)


def _returned(module: Any) -> int | None:
    """Return how many results `forward` gives; None where only a call tells (lists, dicts)."""
    kind = str(module.forward.schema.returns[0].type)
    if kind == "Tensor":
        return 1
    members = _MEMBERS.fullmatch(kind)
    return members[1].count(",") + 1 if members else None


def _check(
    source: ModelSource, config: ModelConfig, rules: RaggedRules, returned: int | None
) -> None:
    locate = locate_in(source.config_file)
    types = {f"input[{index}]": tensor.data_type for index, tensor in enumerate(config.input)}
    types |= {f"output[{index}]": tensor.data_type for index, tensor in enumerate(config.output)}
    for path, data_type in types.items():
        if data_type == DataType.TYPE_STRING:
            raise ConfigError(
                f"{locate(f'{path}.data_type')} is TYPE_STRING; TorchScript models serve "
                "numbers only"
            )
    for index, tensor in enumerate(config.input):
        if tensor.optional and tensor.name not in rules.defaults:
            raise ConfigError(
                f"{locate(f'input[{index}].optional')} is not for TorchScript, unless "
                f'parameters["default:{tensor.name}"] says what a request means that leaves it out'
            )
    names = [output.name for output in config.output]
    wanted = max(positions(names) or [len(names) - 1]) + 1
    if returned is not None and wanted > returned:
        raise ConfigError(
            f"{locate('output')} names {wanted} results {names}, but the script returns {returned}"
        )


def _input_order(
    source: ModelSource, names: list[str], arguments: list[str], required: int
) -> list[str]:
    """Return the names of the inputs in the order of the script's arguments."""
    order: list[int]
    numbers = positions(names)
    if numbers is not None:
        order = numbers
    elif set(names) <= set(arguments):
        order = [arguments.index(name) for name in names]
    else:
        order = list(range(len(names)))
    if sorted(order) != list(range(len(names))) or not required <= len(names) <= len(arguments):
        raise ConfigError(
            f"{locate_in(source.config_file)('input')} names {names}, but the script takes "
            f"{arguments}; write INPUT__0 to INPUT__{len(arguments) - 1}"
        )
    return [name for _, name in sorted(zip(order, names, strict=True))]


def _skeleton(source: ModelSource, arguments: Sequence[str], returned: int | None) -> str:
    lines = [f'name: "{source.name}"', 'backend: "pytorch"', "max_batch_size: 8"]
    for side, count in (("input", len(arguments)), ("output", returned or 1)):
        lines += [
            f'{side} [ {{ name: "{side.upper()}__{index}" data_type: TYPE_FP32 dims: [ -1 ] }} ]'
            for index in range(count)
        ]
    return "\n".join(lines) + "\n"

"""Loads `model.py`: the one subclass of `Model` that it defines.

This runs the file: who may write to the repository runs code as the server's user.

Workers only: the files import torch.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NoReturn

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.errors import ModelError, described
from headrace_server.models.load_options import load_options
from headrace_server.models.model import Model, ModelContext
from headrace_server.models.program import Inputs, Parameters, Program
from headrace_server.models.python_networks import speed_up
from headrace_server.models.ragged import RaggedRules, read_rules, with_ragged_inputs
from headrace_server.models.repository import ModelSource
from headrace_server.models.signature import Signature, reconcile
from headrace_server.models.source_imports import SourceImports, SourceLoader
from headrace_server.models.spec import DYNAMIC, ModelSpec, Role, TensorSpec

PLATFORM = "python"
PARAMETERS = "parameters"
"""The argument of `forward` that receives the custom parameters of the requests."""


def load_python(
    source: ModelSource, config: ModelConfig | None, device: str, role: Role = Role.SERVE
) -> Program:
    """Import the file, check what its class declares, and let the class load.

    The version directory is on the import path from now on, so that the file can import others
    beside it. A worker hosts one model, so that concerns no other.

    Raises:
        ModelError: importing, constructing or loading fails; there is not exactly one `Model`;
            its declarations make no sense or do not fit its `forward`.
        ConfigError: the configuration contradicts the class.
    """
    imports = SourceImports(source.directory.resolve())
    try:
        cls = _model_class(_import(source), source.file)
        rules = read_rules(source, config)
        signature = _signature(cls, source.file, rules)
        try:
            spec = with_ragged_inputs(reconcile(signature, source, config, rules), rules)
        except ValueError as error:
            raise ModelError(f"{source.file}: {error}") from None
        context = ModelContext(
            source.name,
            source.version,
            device,
            source.directory,
            MappingProxyType(
                {key: value.string_value for key, value in config.parameters.items()}
                if config
                else {}
            ),
        )
        try:
            model = cls()
            if role is Role.PREPARE:
                model.load_prepare(context)
            else:
                model.load(context)
        except Exception as error:
            _refuse(source.file, f"{cls.__name__} cannot load", error)
        if role is Role.SERVE:
            speed_up(model, load_options(config), device, source.file)
    except BaseException:
        imports.close()
        raise
    if role is Role.PREPARE:
        return PythonModel(model, model.prepare, preparation_spec(spec), imports)
    return PythonModel(model, model.forward, spec, imports)


class PythonModel:
    """An instance of a user's `Model`."""

    example_shapes: Mapping[str, Sequence[int]] = {}
    overwrites_outputs = True

    def __init__(
        self,
        model: Model,
        method: Callable[..., object],
        spec: ModelSpec,
        imports: SourceImports,
    ) -> None:
        self._model: Model | None = model
        self._imports = imports
        self._forward = method
        self._wants_parameters = PARAMETERS in inspect.signature(method).parameters
        self.spec = spec

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        """See `Program.call`."""
        if not self._wants_parameters:
            return self._forward(**inputs)
        if parameters is None:
            rows = next(iter(inputs.values())).shape[0] if self.spec.max_batch_size else 1
            parameters = [{} for _ in range(rows)]
        return self._forward(**inputs, **{PARAMETERS: [dict(row) for row in parameters]})

    def close(self) -> None:
        """See `Program.close`."""
        if self._model is None:
            return
        model, self._model = self._model, None
        self._imports.close()
        model.unload()


def preparation_spec(spec: ModelSpec) -> ModelSpec:
    """The signature of a model's `prepare` stage: one request at a time, all its rows, so that
    requests may come out with different lengths."""

    def full(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensor.name, tensor.datatype, (DYNAMIC, *tensor.shape), tensor.optional)
            for tensor in tensors
        )

    return ModelSpec(
        spec.name, spec.version, spec.platform, 0, full(spec.inputs), full(spec.prepared)
    )


def _import(source: ModelSource) -> ModuleType:
    name = re.sub(r"\W", "_", f"headrace_model_{source.name}_{source.version}")
    loader = SourceLoader(name, str(source.file))
    spec = importlib.util.spec_from_file_location(name, source.file, loader=loader)
    assert spec is not None, "the file name ends in .py"
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and pickle look a class's module up.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        _refuse(source.file, "cannot be imported", error)
    return module


def _model_class(module: ModuleType, file: Path) -> type[Model]:
    defined = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Model)
        and value.__module__ == module.__name__
    ]
    # A class that another one extends is a base, not a model of its own.
    found = [
        cls
        for cls in dict.fromkeys(defined)
        if not any(cls is not other and issubclass(other, cls) for other in defined)
    ]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise ModelError(f"{file}: expected one subclass of headrace_server.Model, found {names}")
    return found[0]


def _signature(cls: type[Model], file: Path, rules: RaggedRules) -> Signature:
    size: Any = cls.max_batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ModelError(f"{file}: expected max_batch_size to be 0 or more, got {size!r}")
    inputs, outputs = _declared(cls, "inputs", file), _declared(cls, "outputs", file)
    prepared = _declared(cls, "prepared", file) if cls.prepared else ()
    if prepared and not size:
        raise ModelError(f"{file}: {cls.__name__} declares prepared, so it needs a max_batch_size")
    for tensor in inputs if prepared else ():
        if tensor.mask_of or (tensor.pad, tensor.default) != (None, None):
            raise ModelError(
                f"{file}: the input '{tensor.name}' of {cls.__name__} goes to prepare as it comes; "
                "pad, mask_of and default belong to what is prepared"
            )
    batch_inputs = [made.tensor for made in rules.batch_inputs]
    _check_method(cls, "forward", [*(prepared or inputs), *batch_inputs], file)
    if prepared:
        _check_method(cls, "prepare", inputs, file)
    return Signature(
        origin=f"the class {cls.__name__}",
        platform=PLATFORM,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=size,
        batch_limit=size,
        unbatched_because="its max_batch_size is 0" if size == 0 else "",
        prepared=prepared,
    )


def _declared(cls: type[Model], side: str, file: Path) -> tuple[TensorSpec, ...]:
    declared: Any = getattr(cls, side, None)
    if (
        not isinstance(declared, list | tuple)
        or not declared
        or not all(isinstance(tensor, TensorSpec) for tensor in declared)
    ):
        raise ModelError(
            f"{file}: expected {cls.__name__}.{side} to be a list of TensorSpec, got {declared!r}"
        )
    names = [tensor.name for tensor in declared]
    if len(set(names)) != len(names):
        raise ModelError(f"{file}: {cls.__name__}.{side} name a tensor twice: {names}")
    return tuple(declared)


def _check_method(cls: type[Model], name: str, inputs: Sequence[TensorSpec], file: Path) -> None:
    method = getattr(cls, name)
    if method is getattr(Model, name):
        raise ModelError(f"{file}: {cls.__name__} defines no {name}")
    signature = inspect.signature(method)
    given = {tensor.name: None for tensor in inputs}
    needed = {
        tensor.name: None for tensor in inputs if not tensor.optional or tensor.default is not None
    }
    extra = {PARAMETERS: None} if PARAMETERS in signature.parameters else {}
    try:
        signature.bind(None, **given, **extra)
        signature.bind(None, **needed, **extra)
    except TypeError as error:
        raise ModelError(
            f"{file}: {name}{signature} cannot take the inputs {list(given)}: {error}"
        ) from None


def _refuse(file: Path, what: str, error: Exception) -> NoReturn:
    """Raise a ModelError that names the line of the user's file where ``error`` came from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == file
    ]
    where = f"{file}, line {lines[-1]}" if lines else str(file)
    raise ModelError(f"{where}: {what}: {described(error)}") from error

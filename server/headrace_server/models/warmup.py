"""Runs a model before it is declared ready: what `model_warmup` asks for, or batches of zeros.

Workers only: imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from headrace.protocol.model_config_pb2 import ModelConfig, ModelWarmup
from headrace.tensors import TensorError, split_byte_elements
from headrace_server.models.compilation import compile_no_more, compiled_graphs
from headrace_server.models.config_text import locate_in
from headrace_server.models.datatypes import config_type, config_type_name
from headrace_server.models.errors import ConfigError, ModelError, described
from headrace_server.models.load_options import COMPILE
from headrace_server.models.loading import LoadedModel
from headrace_server.models.program import Tensor
from headrace_server.models.repository import ESCAPES, WARMUP_DIRECTORY, ModelSource, lies_in
from headrace_server.models.spec import DYNAMIC, ModelSpec, TensorSpec
from headrace_server.models.torch_types import TORCH_DTYPES

DEFAULT_LENGTH = 16
"""Length of a dynamic dimension that nothing is known about."""

AUTOMATIC = "automatic"

_NO_SHAPES: Mapping[str, Sequence[int]] = MappingProxyType({})

log = logging.getLogger("headrace.models")


def warm_up(model: LoadedModel, config: ModelConfig | None, source: ModelSource) -> None:
    """Run every warm-up of the configuration, or one row and a full batch of zeros.

    Zeros may be invalid for a model: what it raises on them is logged and forgiven, unless this is
    when it is compiled. What the configuration asks for has to succeed.

    Raises:
        ConfigError: a warm-up does not fit the model's inputs.
        ModelError: a warm-up fails; an answer does not fit the model's signature; a full batch
            does not fit into memory; nothing was compiled that should have been.
    """
    before = compiled_graphs() if model.compiles_when_called else 0
    try:
        samples = warmup_inputs(
            model.spec,
            config,
            source.config_file.parent / WARMUP_DIRECTORY,
            model.example_shapes,
            # One row is a graph of its own for the compiler, two stand for all others.
            more_rows=(2,) if model.compiles_when_called else (),
        )
    except ConfigError as error:
        raise ConfigError(f"{locate_in(source.config_file)('model_warmup')}: {error}") from None
    for name, inputs in samples:
        on_device = {
            key: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for key, value in inputs.items()
        }
        try:
            model.run_rows(on_device)
        except (ModelError, torch.OutOfMemoryError) as error:
            raise ModelError(f"{name} warm-up with {_shapes(inputs)}: {error}") from error
        except Exception as error:
            what = f"{name} warm-up with {_shapes(inputs)}: {described(error)}"
            if model.compiles_when_called:
                raise ModelError(
                    f"{what}; what cannot run cannot be compiled: drop '{COMPILE}', or give inputs "
                    "with model_warmup"
                ) from error
            if name != AUTOMATIC:
                raise ModelError(what) from error
            log.warning("%s: not warmed up; a model_warmup in config.pbtxt can do better", what)
    if model.compiles_when_called:
        if compiled_graphs() == before:
            raise ModelError(
                f"{source.file}: '{COMPILE}' compiled nothing: the model calls none of the "
                "torch.nn.Modules that load() keeps as attributes"
            )
        compile_no_more()


def warmup_inputs(
    spec: ModelSpec,
    config: ModelConfig | None,
    directory: Path,
    example_shapes: Mapping[str, Sequence[int]] = _NO_SHAPES,
    more_rows: Sequence[int] = (),
) -> list[tuple[str, dict[str, Tensor]]]:
    """Return the batches to warm up with, on the CPU, each with the name of its warm-up.

    A `model_warmup` appears as often as its ``count`` says; its data is one row, which is repeated
    ``batch_size`` times. Without any: zeros (empty strings for BYTES) of one row, of as many as
    ``more_rows`` says, and of ``max_batch_size`` rows. There, dynamic dimensions have the lengths
    of ``example_shapes``, which leave the batch dimension out, or else `DEFAULT_LENGTH`.

    Raises:
        ConfigError: a warm-up leaves an input out, has one too many, or does not fit one.
    """
    if config is not None and config.model_warmup:
        return [
            sample
            for warmup in config.model_warmup
            for sample in [_configured(spec, warmup, directory)] * max(1, warmup.count)
        ]
    most = spec.max_batch_size
    rows_of = sorted({1, *(rows for rows in more_rows if rows < most), most})
    batches = rows_of if most else [None]
    return [
        (
            AUTOMATIC,
            {
                tensor.name: _zeros(tensor, _full(example_shape(tensor, example_shapes), rows))
                for tensor in spec.batched_inputs
            },
        )
        for rows in batches
    ]


def synthetic_inputs(model: LoadedModel, rows: int) -> dict[str, Tensor]:
    """A batch to try a model out with, on the CPU: random numbers, and nothing masked out."""
    spec = model.spec
    inputs: dict[str, Tensor] = {}
    for tensor in spec.batched_inputs:
        shape = example_shape(tensor, model.example_shapes)
        full = _full(shape, rows if spec.max_batch_size else None)
        masks = tensor.datatype == "BOOL"
        inputs[tensor.name] = torch.ones(full, dtype=torch.bool) if masks else _random(tensor, full)
    return inputs


def _configured(
    spec: ModelSpec, warmup: ModelWarmup, directory: Path
) -> tuple[str, dict[str, Tensor]]:
    name = warmup.name or "unnamed"
    known = {tensor.name: tensor for tensor in spec.batched_inputs}
    required = {
        tensor.name
        for tensor in spec.batched_inputs
        if not tensor.optional or tensor.default is not None
    }
    if not required <= warmup.inputs.keys() <= known.keys():
        raise ConfigError(f"'{name}' has the inputs {sorted(warmup.inputs)}, expected {[*known]}")
    if warmup.batch_size > max(1, spec.max_batch_size):
        raise ConfigError(
            f"'{name}' has batch_size {warmup.batch_size}, expected at most "
            f"{max(1, spec.max_batch_size)}"
        )
    rows = max(1, warmup.batch_size) if spec.max_batch_size else None
    return name, {
        key: _configured_tensor(name, known[key], data, rows, directory)
        for key, data in warmup.inputs.items()
    }


def _configured_tensor(
    name: str,
    tensor: TensorSpec,
    data: ModelWarmup.Input,
    rows: int | None,
    directory: Path,
) -> Tensor:
    what = f"'{name}', input '{tensor.name}'"
    if data.data_type != config_type(tensor.datatype):
        raise ConfigError(f"{what}: write data_type: {config_type_name(tensor.datatype)}")
    shape = tuple(data.dims)
    if len(shape) != len(tensor.shape) or any(
        own not in (DYNAMIC, dim) for own, dim in zip(tensor.shape, shape, strict=True)
    ):
        raise ConfigError(f"{what}: dims are {list(shape)}, expected {list(tensor.shape)}")
    full = _full(shape, rows)
    match data.WhichOneof("input_data_type"):
        case "random_data":
            return _random(tensor, full)
        case "input_data_file":
            file = directory / data.input_data_file
            # Of the warm-up directory of a model of the repository.
            if not lies_in(directory.parent.parent, file):
                raise ConfigError(f"{what}: {file} {ESCAPES}")
            row = _from_file(what, tensor, shape, file)
            if rows is None:
                return row
            if isinstance(row, torch.Tensor):
                return row.expand(full).contiguous()
            return np.broadcast_to(row, full).copy()
        case _:
            return _zeros(tensor, full)


def _from_file(what: str, tensor: TensorSpec, shape: tuple[int, ...], file: Path) -> Tensor:
    """Read one row, in the protocol's raw layout."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: {file} cannot be read: {error.strerror}") from error
    count = int(np.prod(shape, dtype=np.int64))
    if tensor.datatype == "BYTES":
        elements = np.empty(count, dtype=object)
        try:
            elements[:] = list(split_byte_elements(content, count))
        except TensorError as error:
            raise ConfigError(f"{what}: {file}: {error}") from error
        return elements.reshape(shape)
    dtype = TORCH_DTYPES[tensor.datatype]
    if len(content) != count * dtype.itemsize:
        raise ConfigError(
            f"{what}: expected {count * dtype.itemsize} bytes in {file}, got {len(content)}"
        )
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def _zeros(tensor: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return torch.zeros(shape, dtype=TORCH_DTYPES[tensor.datatype])


def _random(tensor: TensorSpec, shape: tuple[int, ...]) -> Tensor:
    """Floats from [0, 1), whole numbers from {0, 1}, which are indices into most tables."""
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    dtype = TORCH_DTYPES[tensor.datatype]
    drawn = torch.rand(shape) if dtype.is_floating_point else torch.randint(0, 2, shape)
    return drawn.to(dtype)


def example_shape(
    tensor: TensorSpec, example_shapes: Mapping[str, Sequence[int]]
) -> tuple[int, ...]:
    """The shape, without rows, that an input is tried with: that of `Program.example_shapes`, or
    dynamic dimensions as near to `DEFAULT_LENGTH` as it admits."""
    return tensor.nearest(example_shapes.get(tensor.name) or [DEFAULT_LENGTH] * len(tensor.shape))


def _full(shape: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
    return shape if rows is None else (rows, *shape)


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{name}' {list(value.shape)}" for name, value in inputs.items())

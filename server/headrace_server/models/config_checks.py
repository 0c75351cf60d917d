"""Refuses a configuration that cannot be honoured, before any model is loaded.

Asking for a feature that is missing here makes the model unavailable, with the reason, instead of
being served wrongly. Without effect and therefore accepted: `optimization`, but for what
`gpu_options` reads, `metric_tags`, `model_metrics`, rate limiters, host policies, input formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NoReturn

from headrace.protocol.model_config_pb2 import (
    BatchInput,
    BatchOutput,
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)
from headrace_server.models.batching import batching_parameters, batching_settings
from headrace_server.models.config_text import Locate, locate_nowhere
from headrace_server.models.errors import ConfigError
from headrace_server.models.gpu_options import gpu_options
from headrace_server.models.load_options import load_options
from headrace_server.models.spec import DYNAMIC

BACKENDS = ("pytorch", "python")
PLATFORMS = ("pytorch_libtorch", "pytorch_pt2")

_UNSUPPORTED = "is not supported by this version of Headrace"


def check_config(config: ModelConfig, name: str, locate: Locate = locate_nowhere) -> None:
    """Check everything that can be known without the model itself.

    Args:
        config: what the model's directory, or a load request, says.
        name: the name of the model's directory.
        locate: names a field in errors, with its line where there is one.

    Raises:
        ConfigError: the first fault found.
    """

    def refuse(path: str, message: str) -> NoReturn:
        raise ConfigError(f"{locate(path)} {message}")

    if config.name and config.name != name:
        refuse("name", f"is '{config.name}', but the directory is '{name}'; write name: \"{name}\"")
    for path in _unsupported(config):
        refuse(path, _UNSUPPORTED)
    if config.backend and config.backend not in BACKENDS:
        refuse("backend", f"is '{config.backend}'; served are {_quoted(BACKENDS)}")
    if config.platform and config.platform not in PLATFORMS:
        refuse("platform", f"is '{config.platform}'; served are {_quoted(PLATFORMS)}")
    if config.max_batch_size < 0:
        refuse("max_batch_size", f"must be 0 or more, got {config.max_batch_size}")
    for side, tensors in (("input", config.input), ("output", config.output)):
        for path, message in _tensor_faults(side, tensors, config.max_batch_size > 0):
            refuse(path, message)
    for index, group in enumerate(config.instance_group):
        if group.count < 0:
            refuse(f"instance_group[{index}].count", f"must be 0 or more, got {group.count}")
    batching_parameters(config, locate)
    load_options(config, locate)
    gpu_options(config, locate)
    if config.max_batch_size:
        batching_settings(config, config.max_batch_size, locate)
    for path, message in chain(_ragged_faults(config), _warmup_faults(config)):
        refuse(path, message)


def _unsupported(config: ModelConfig) -> Iterator[str]:
    """Yield the path of every field that asks for what this version does not do."""
    for block in ("sequence_batching", "ensemble_scheduling"):
        if config.HasField(block):
            yield block
    if config.model_transaction_policy.decoupled:
        yield "model_transaction_policy.decoupled"
    if config.response_cache.enable:
        yield "response_cache.enable"
    if config.model_repository_agents.agents:
        yield "model_repository_agents"
    if config.model_operations.op_library_filename:
        yield "model_operations.op_library_filename"
    for field in ("cc_model_filenames", "runtime"):
        if getattr(config, field):
            yield field
    for index, tensor in enumerate(config.input):
        yield from _unsupported_of_tensor(f"input[{index}]", tensor)
    for index, output in enumerate(config.output):
        yield from _unsupported_of_tensor(f"output[{index}]", output)
    for index, group in enumerate(config.instance_group):
        if group.kind == ModelInstanceGroup.KIND_MODEL:
            yield f"instance_group[{index}].kind"
        for field in ("secondary_devices", "passive", "profile"):
            if getattr(group, field):
                yield f"instance_group[{index}].{field}"


def _unsupported_of_tensor(path: str, tensor: ModelInput | ModelOutput) -> Iterator[str]:
    if tensor.HasField("reshape"):
        yield f"{path}.reshape"
    for field in ("is_shape_tensor", "is_non_linear_format_io"):
        if getattr(tensor, field):
            yield f"{path}.{field}"


def _tensor_faults(
    side: str, tensors: Iterable[ModelInput | ModelOutput], batched: bool
) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    for index, tensor in enumerate(tensors):
        path = f"{side}[{index}]"
        if not tensor.name:
            yield path, 'has no name; write name: "..."'
        if tensor.name in names:
            yield f"{path}.name", f"'{tensor.name}' appears twice"
        names.add(tensor.name)
        if tensor.data_type == DataType.TYPE_INVALID:
            yield path, f"'{tensor.name}' has no data_type; write data_type: TYPE_FP32, for example"
        if not tensor.dims and not batched:
            yield path, f"'{tensor.name}' has no dims; write dims: [ -1 ], for example"
        for dim in tensor.dims:
            if dim != DYNAMIC and dim < 1:
                yield f"{path}.dims", f"of '{tensor.name}' must be 1 or more, or -1, got {dim}"


def _ragged_faults(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Check Triton's ragged batches: what is concatenated, made for a batch, and dealt out.

    Looks no further behind a fault: the first one is reported.
    """
    inputs = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name: tensor for tensor in config.output}
    ragged = [
        *(
            f"input[{index}].allow_ragged_batch"
            for index, tensor in enumerate(config.input)
            if tensor.allow_ragged_batch
        ),
        *(f"batch_input[{index}]" for index in range(len(config.batch_input))),
        *(f"batch_output[{index}]" for index in range(len(config.batch_output))),
    ]
    if ragged and not config.max_batch_size:
        yield ragged[0], "needs a max_batch_size above 0"
    made: set[str] = set(inputs)
    for index, entry in enumerate(config.batch_input):
        path = f"batch_input[{index}]"
        yield from _source_faults(path, entry, inputs)
        for name in entry.target_name:
            if name in made:
                yield f"{path}.target_name", f"'{name}' appears twice"
            made.add(name)
        if entry.data_type not in (DataType.TYPE_INT32, DataType.TYPE_FP32):
            yield f"{path}.data_type", "must be TYPE_INT32 or TYPE_FP32"
    dealt_out: set[str] = set()
    for index, dealt in enumerate(config.batch_output):
        path = f"batch_output[{index}]"
        yield from _source_faults(path, dealt, inputs)
        source = inputs[dealt.source_input[0]]
        for name in dealt.target_name:
            fault = _why_not_dealt_out(outputs.get(name), source, outputs)
            if fault or name in dealt_out:
                yield f"{path}.target_name", f"'{name}' {fault or 'appears twice'}"
            dealt_out.add(name)


def _source_faults(
    path: str, entry: BatchInput | BatchOutput, inputs: Mapping[str, ModelInput]
) -> Iterator[tuple[str, str]]:
    if not entry.target_name:
        yield path, 'has no target_name; write target_name: "..."'
    if len(entry.source_input) != 1:
        yield path, f"must have one source_input, got {list(entry.source_input)}"
    name = entry.source_input[0]
    if name not in inputs:
        yield f"{path}.source_input", f"'{name}' is not among the inputs: {_quoted(inputs)}"
    if inputs[name].optional:
        yield f"{path}.source_input", f"'{name}' must not be optional"


def _why_not_dealt_out(
    output: ModelOutput | None, source: ModelInput, outputs: Iterable[str]
) -> str:
    if output is None:
        return f"is not among the outputs: {_quoted(outputs)}"
    if output.data_type == DataType.TYPE_STRING:
        return "must not be TYPE_STRING"
    if DYNAMIC in output.dims[len(source.dims) :]:
        return (
            f"has the dims {list(output.dims)}, of which a dynamic one has no counterpart in "
            f"{list(source.dims)} of '{source.name}'"
        )
    return ""


def _warmup_faults(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for index, warmup in enumerate(config.model_warmup):
        path = f"model_warmup[{index}]"
        if config.max_batch_size and warmup.batch_size > config.max_batch_size:
            yield f"{path}.batch_size", f"is above max_batch_size {config.max_batch_size}"
        for name, tensor in warmup.inputs.items():
            if not tensor.WhichOneof("input_data_type"):
                yield path, f"'{name}' needs zero_data, random_data or input_data_file"
            if any(dim < 1 for dim in tensor.dims):
                yield path, f"'{name}' needs dims of 1 or more, got {list(tensor.dims)}"
            file = tensor.input_data_file
            if file in (".", "..") or "/" in file or "\\" in file:
                yield path, f"'{name}' must name a file in the warmup folder, got '{file}'"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"

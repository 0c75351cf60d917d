"""Signature of an exported program that takes the inputs of all requests in one dimension.

Such a program has no batch dimension that could be read from it: the configuration, with Triton's
`allow_ragged_batch`, `batch_input` and `batch_output`, says what its dimensions mean. Workers only:
imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.errors import ConfigError
from headrace_server.models.exported_signature import (
    EXAMPLE_LENGTH,
    PLATFORM,
    NamedTensor,
    ProgramTensors,
)
from headrace_server.models.ragged import RaggedRules
from headrace_server.models.repository import ModelSource
from headrace_server.models.signature import Signature, positions
from headrace_server.models.spec import DYNAMIC, ModelSpec, TensorSpec


def concatenated_signature(
    tensors: ProgramTensors, config: ModelConfig, rules: RaggedRules, source: ModelSource
) -> Signature:
    """Return the signature that clients see; what the server makes is left out of its inputs.

    Raises:
        ConfigError: a tensor of the program is not what the configuration makes of it.
    """
    origin = "the exported program"
    locate = rules.locate
    inputs = {tensor.name: tensor for tensor in tensors.inputs}
    made = {entry.tensor.name: entry.tensor for entry in rules.batch_inputs}
    paths = {
        name: f"batch_input[{index}]"
        for index, entry in enumerate(config.batch_input)
        for name in entry.target_name
    }
    for name, wanted in made.items():
        path = paths[name]
        if name not in inputs:
            raise ConfigError(
                f"{locate(f'{path}.target_name')} '{name}' is unknown: the inputs of {origin} "
                f"are {', '.join(inputs)}"
            )
        found = inputs[name].spec({}, batched=False)
        if found.datatype != wanted.datatype:
            raise ConfigError(
                f"{locate(f'{path}.data_type')} of '{name}' contradicts {origin}, which takes "
                f"{found.datatype}"
            )
        _check_dimensions(inputs[name], wanted.shape, f"{locate(path)} makes", origin)
    dims = {entry.name: tuple(entry.dims) for entry in config.input}
    dims |= {entry.name: tuple(entry.dims) for entry in config.output}
    for name, path in rules.flat.items():
        if name in inputs:
            _check_dimensions(inputs[name], (DYNAMIC,), f"{locate(path)} concatenates", origin)

    def seen(tensor: NamedTensor, concatenated: bool) -> TensorSpec:
        full = tensor.spec(tensors.lengths if tensor.name in inputs else {}, batched=False)
        if concatenated:
            shape = dims[tensor.name]
            bounds = ((0, full.bounds[0][1]),) if full.bounds and shape == (DYNAMIC,) else ()
            return TensorSpec(tensor.name, full.datatype, shape, bounds=bounds)
        if not full.shape or full.shape[0] != DYNAMIC:
            raise ConfigError(
                f"{locate('max_batch_size')} is {config.max_batch_size}, but dimension 0 of "
                f"'{tensor.name}' of {origin} is fixed"
            )
        return TensorSpec(tensor.name, full.datatype, full.shape[1:], bounds=full.bounds[1:])

    outputs = [
        replace(tensor, name=name)
        for tensor, name in zip(tensors.outputs, _output_names(tensors, config), strict=True)
    ]
    sent = [tensor for tensor in tensors.inputs if tensor.name not in made]
    rows = [tensor.expression(0) for tensor in sent if tensor.name not in rules.flat]
    limits = [tensors.lengths[row].upper for row in rows if row in tensors.lengths]
    return Signature(
        origin=origin,
        platform=PLATFORM,
        inputs=tuple(seen(tensor, tensor.name in rules.flat) for tensor in sent),
        outputs=tuple(seen(tensor, tensor.name in rules.shaped_like) for tensor in outputs),
        max_batch_size=config.max_batch_size,
        batch_limit=min((limit for limit in limits if limit is not None), default=None),
    )


def concatenated_examples(tensors: ProgramTensors, spec: ModelSpec) -> Mapping[str, Sequence[int]]:
    """Return shapes, without rows, of which a full batch fits into the program's bounds."""
    upper = {
        tensor.name: tensors.lengths[expression].upper
        for tensor in tensors.inputs
        if tensor.shape and (expression := tensor.expression(0)) in tensors.lengths
    }
    examples = {}
    for tensor in spec.inputs:
        most = upper.get(tensor.name) if tensor.flat else None
        fixed = math.prod(dim for dim in tensor.shape if dim != DYNAMIC)
        share = EXAMPLE_LENGTH if most is None else most // (spec.max_batch_size * max(1, fixed))
        length = max(1, min(EXAMPLE_LENGTH, share)) if tensor.shape.count(DYNAMIC) == 1 else 1
        examples[tensor.name] = [length if dim == DYNAMIC else dim for dim in tensor.shape]
    return examples


def _output_names(tensors: ProgramTensors, config: ModelConfig) -> list[str]:
    """Return the program's names; where it has none, those of the configuration."""
    own = [tensor.name for tensor in tensors.outputs]
    names = [entry.name for entry in config.output]
    order = positions(names) or list(range(len(names)))
    if tensors.outputs_named or sorted(order) != list(range(len(own))):
        return own
    return [name for _, name in sorted(zip(order, names, strict=True))]


def _check_dimensions(tensor: NamedTensor, wanted: Sequence[int], where: str, origin: str) -> None:
    """Raise ConfigError unless the program takes these dimensions, the first of any length."""
    found = tensor.spec({}, batched=False).shape
    fits = len(found) == len(wanted) and all(
        DYNAMIC in (want, have) or want == have
        for want, have in zip(wanted[1:], found[1:], strict=True)
    )
    if not fits or found[0] != DYNAMIC:
        raise ConfigError(
            f"{where} '{tensor.name}' with the shape {list(wanted)}, but {origin} takes "
            f"{list(found)}"
        )

"""Brings together what a model file says of itself and what its configuration says.

The model knows what it can do; the configuration may restrict and rename it, and must not
contradict it. Front-safe, though only workers have a model to ask.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.protocol.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from headrace_server.models.config_text import Locate, locate_in
from headrace_server.models.datatypes import config_type, config_type_name, protocol_type
from headrace_server.models.errors import ConfigError
from headrace_server.models.ragged import RaggedRules
from headrace_server.models.repository import ModelSource
from headrace_server.models.spec import DYNAMIC, ModelSpec, TensorSpec

_NO_RULES = RaggedRules()

_POSITION = re.compile(r".*__(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model file says of itself.

    ``origin`` names it in errors (``the exported program``). ``max_batch_size`` is what it gets
    unless the configuration asks for another number up to ``batch_limit`` (None: no limit); 0
    means no batch dimension, for the reason ``unbatched_because``. ``can_drop_batch``: requests
    with full shapes can be served too. Positional tensors have no names of their own, or names
    that a configuration may replace.
    """

    origin: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    batch_limit: int | None = None
    unbatched_because: str = ""
    can_drop_batch: bool = False
    positional_inputs: bool = False
    positional_outputs: bool = False
    prepared: tuple[TensorSpec, ...] = ()


def reconcile(
    signature: Signature,
    source: ModelSource,
    config: ModelConfig | None,
    rules: RaggedRules = _NO_RULES,
) -> ModelSpec:
    """Return the spec: the model's own, as its configuration restricts it.

    Tensors keep the model's order. A dimension is fixed where either side fixes it. A
    configuration without ``input`` and ``output`` leaves the tensors to the model, and without
    ``max_batch_size`` that too. Of the ``rules`` only the names are heeded: a mask that the
    server makes need not be among the configuration's inputs, and one with a default may be
    optional.

    Raises:
        ConfigError: the configuration contradicts the model; says where and what to write.
    """
    batched = signature.max_batch_size > 0
    if config is None:
        return _spec(signature, source, signature.max_batch_size)
    locate = locate_in(source.config_file)
    max_batch_size = _agreed_batch_size(signature, config, locate)
    if batched and max_batch_size == 0:
        signature = replace(
            signature,
            inputs=tuple(_with_batch_dimension(spec) for spec in signature.inputs),
            outputs=tuple(_with_batch_dimension(spec) for spec in signature.outputs),
        )
    hint = (
        f"; or write max_batch_size: {signature.max_batch_size} and leave the batch dimension out"
        if batched and max_batch_size == 0
        else ""
    )
    inputs = _agreed("input", signature.inputs, config.input, signature, locate, hint, rules)
    outputs = _agreed("output", signature.outputs, config.output, signature, locate, hint, rules)
    return _spec(replace(signature, inputs=inputs, outputs=outputs), source, max_batch_size)


def spec_from_config(source: ModelSource, config: ModelConfig, platform: str) -> ModelSpec:
    """Return the spec of a model that says nothing of itself: the configuration's word is all."""

    def specs(tensors: Sequence[ModelInput | ModelOutput]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensor.name, protocol_type(tensor.data_type), tensor.dims)
            for tensor in tensors
        )

    return ModelSpec(
        source.name,
        source.version,
        platform,
        config.max_batch_size,
        specs(config.input),
        specs(config.output),
    )


def positions(names: Sequence[str]) -> list[int] | None:
    """Return the numbers of names like ``INPUT__0``; None if any has none or two are the same."""
    matches = [_POSITION.fullmatch(name) for name in names]
    numbers = [int(match[1]) for match in matches if match]
    return numbers if len(set(numbers)) == len(names) else None


def config_entry(side: str, spec: TensorSpec) -> str:
    """Return what to write in a config.pbtxt for this ``input`` or ``output``."""
    dims = ", ".join(map(str, spec.shape))
    return (
        f'{side} [ {{ name: "{spec.name}" data_type: {config_type_name(spec.datatype)} '
        f"dims: [ {dims} ] }} ]"
    )


def _spec(signature: Signature, source: ModelSource, max_batch_size: int) -> ModelSpec:
    return ModelSpec(
        source.name,
        source.version,
        signature.platform,
        max_batch_size,
        signature.inputs,
        signature.outputs,
        signature.prepared,
    )


def _with_batch_dimension(spec: TensorSpec) -> TensorSpec:
    bounds = ((0, DYNAMIC), *spec.bounds) if spec.bounds else ()
    return replace(spec, shape=(DYNAMIC, *spec.shape), bounds=bounds)


def _agreed_batch_size(signature: Signature, config: ModelConfig, locate: Locate) -> int:
    own, asked = signature.max_batch_size, config.max_batch_size
    where = locate("max_batch_size")
    if asked and not own:
        raise ConfigError(
            f"{where} is {asked}, but {signature.origin} has no batch dimension"
            f"{': ' if signature.unbatched_because else ''}{signature.unbatched_because}; "
            "write max_batch_size: 0 and full dims"
        )
    if asked and signature.batch_limit is not None and asked > signature.batch_limit:
        raise ConfigError(
            f"{where} is {asked}, but {signature.origin} takes at most {signature.batch_limit} "
            f"rows; write max_batch_size: {signature.batch_limit}"
        )
    if asked or not own:
        return asked
    if not config.input and not config.output:
        return own
    if signature.can_drop_batch:
        return 0
    raise ConfigError(
        f"{where} is not written, but {signature.origin} has a batch dimension; "
        f"write max_batch_size: {own}"
    )


def _agreed(
    side: str,
    specs: tuple[TensorSpec, ...],
    entries: Sequence[ModelInput | ModelOutput],
    signature: Signature,
    locate: Locate,
    hint: str,
    rules: RaggedRules,
) -> tuple[TensorSpec, ...]:
    if not entries:
        return specs
    origin = signature.origin
    made: list[str] = []
    if side == "input":
        made = [*rules.masks, *(spec.name for spec in specs if spec.mask_of)]
    names = dict.fromkeys([*(entry.name for entry in entries), *made])
    specs = _renamed(side, specs, [*names], signature)
    written = {entry.name: (index, entry) for index, entry in enumerate(entries)}
    known = {spec.name for spec in specs}
    for name, (index, _) in written.items():
        if name not in known:
            listed = ", ".join(f"'{spec}'" for spec in specs) or "none"
            raise ConfigError(
                f"{locate(f'{side}[{index}].name')} '{name}' is unknown: "
                f"the {side}s of {origin} are {listed}"
            )
    agreed = []
    for spec in specs:
        if spec.name not in written:
            if spec.name in made:
                agreed.append(spec)
                continue
            raise ConfigError(
                f"{locate(side)} lacks '{spec.name}' of {origin}; write {config_entry(side, spec)}"
            )
        index, entry = written[spec.name]
        path = f"{side}[{index}]"
        if entry.data_type != config_type(spec.datatype):
            raise ConfigError(
                f"{locate(f'{path}.data_type')} of '{spec.name}' contradicts {origin}; "
                f"write data_type: {config_type_name(spec.datatype)}"
            )
        may_be_left_out = spec.optional or spec.name in rules.defaults
        if isinstance(entry, ModelInput) and entry.optional and not may_be_left_out:
            raise ConfigError(f"{locate(f'{path}.optional')}: {origin} needs '{spec.name}'")
        shape = _agreed_shape(spec, entry.dims, f"{path}.dims", origin, locate, hint)
        open_ended = DYNAMIC in shape  # or nothing is left to be padded
        agreed.append(
            replace(
                spec,
                shape=shape,
                pad=spec.pad if open_ended else None,
                mask_of=spec.mask_of if open_ended else "",
            )
        )
    return tuple(agreed)


def _renamed(
    side: str,
    specs: tuple[TensorSpec, ...],
    names: Sequence[str],
    signature: Signature,
) -> tuple[TensorSpec, ...]:
    """Give positional tensors the names of the configuration: by their number, else in order."""
    if {spec.name for spec in specs} == set(names) or len(names) != len(specs):
        return specs
    numbers = positions(names)
    if numbers is not None and sorted(numbers) != list(range(len(specs))):
        return specs
    if side == "input" and not (signature.positional_inputs and numbers):
        return specs
    if side == "output" and not signature.positional_outputs:
        return specs
    by_position = dict(zip(numbers or range(len(names)), names, strict=True))
    return tuple(replace(spec, name=by_position[position]) for position, spec in enumerate(specs))


def _agreed_shape(
    spec: TensorSpec, dims: Sequence[int], path: str, origin: str, locate: Locate, hint: str
) -> tuple[int, ...]:
    fits = len(dims) == len(spec.shape) and all(
        asked == own or DYNAMIC in (asked, own) for asked, own in zip(dims, spec.shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{locate(path)} of '{spec.name}' are {list(dims)}, but {origin} has "
            f"{list(spec.shape)}; write dims: {list(spec.shape)}{hint}"
        )
    return tuple(
        own if asked == DYNAMIC else asked for asked, own in zip(dims, spec.shape, strict=True)
    )

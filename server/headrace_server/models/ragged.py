"""Brings inputs of different lengths into a spec: fillings, masks and Triton's ragged batches.

What a configuration says of them is in its `parameters` (`pad:NAME`, `mask:NAME`, `default:NAME`,
which Triton does not read) and in Triton's own fields. Front-safe, though only workers load models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from headrace.protocol.model_config_pb2 import BatchInput, ModelConfig
from headrace_server.models.config_text import Locate, locate_in, locate_nowhere
from headrace_server.models.datatypes import protocol_type
from headrace_server.models.errors import ConfigError
from headrace_server.models.repository import ModelSource
from headrace_server.models.spec import DYNAMIC, MadeInput, Making, ModelSpec, TensorSpec

NEVER = "none"
"""The pad of an input that is not to be padded, whatever could be derived."""


@dataclass(frozen=True, slots=True)
class RaggedRules:
    """What a configuration says about inputs of different lengths, by the names of its tensors.

    ``pads`` holds None for an input that must not be padded. ``masks`` and ``shaped_like`` name
    the input that decides; ``flat`` are the inputs that are concatenated, with the path of the
    field that says so. ``batch_inputs`` are made by the server and not among the configuration's
    inputs.
    """

    pads: Mapping[str, float | None] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    flat: Mapping[str, str] = field(default_factory=dict)
    batch_inputs: tuple[MadeInput, ...] = ()
    shaped_like: Mapping[str, str] = field(default_factory=dict)
    locate: Locate = locate_nowhere

    @property
    def triton(self) -> bool:
        """Whether anything of Triton's ragged batching is asked for."""
        return bool(self.flat or self.batch_inputs or self.shaped_like)

    def path(self, name: str) -> str:
        """Where a configuration says that an input is padded."""
        if name in self.pads:
            return _parameter("pad", name)
        masks = (mask for mask, source in self.masks.items() if name in (mask, source))
        return next((_parameter("mask", mask) for mask in masks), "parameters")

    def paths(self) -> Iterator[str]:
        """Where a configuration asks for more than to leave inputs as they are."""
        yield from (_parameter("pad", name) for name, pad in self.pads.items() if pad is not None)
        yield from (_parameter("mask", name) for name in self.masks)
        yield from self.flat.values()
        if self.batch_inputs:
            yield "batch_input"
        if self.shaped_like:
            yield "batch_output"


def read_rules(source: ModelSource, config: ModelConfig | None) -> RaggedRules:
    """Read what a configuration, already checked by `check_config`, says.

    Raises:
        ConfigError: a parameter is no number, or its name names nothing.
    """
    if config is None:
        return RaggedRules()
    locate = locate_in(source.config_file)
    pads: dict[str, float | None] = {}
    masks: dict[str, str] = {}
    defaults: dict[str, float] = {}
    for key in sorted(config.parameters):
        what, colon, name = key.partition(":")
        value = config.parameters[key].string_value.strip()
        match what if colon else "":
            case "pad":
                pads[name] = None if value == NEVER else _number(key, value, locate)
            case "mask":
                masks[name] = value
            case "default":
                defaults[name] = _number(key, value, locate)
    return RaggedRules(
        pads,
        masks,
        defaults,
        {
            tensor.name: f"input[{index}].allow_ragged_batch"
            for index, tensor in enumerate(config.input)
            if tensor.allow_ragged_batch
        },
        tuple(_batch_inputs(config)),
        {
            name: entry.source_input[0]
            for entry in config.batch_output
            for name in entry.target_name
        },
        locate,
    )


def with_ragged_inputs(spec: ModelSpec, rules: RaggedRules) -> ModelSpec:
    """Return the spec with what the rules say of its inputs, masks and batch inputs set apart.

    Args:
        spec: with every input of the model but the batch inputs of ``rules``.
        rules: what the configuration says.

    Raises:
        ConfigError: the rules do not fit the model.
        ValueError: nor does what its tensors say themselves (`mask_of`).
    """
    inputs = spec.batched_inputs
    known = {tensor.name for tensor in inputs}
    for what, names in (("pad", rules.pads), ("mask", rules.masks), ("default", rules.defaults)):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{rules.locate(_parameter(what, name))} names no input of the model; "
                    f"it has {_listed(inputs)}"
                )
    for path in rules.paths():
        if not spec.max_batch_size:
            raise ConfigError(f"{rules.locate(path)} needs a model with a batch dimension")
        if rules.triton and spec.prepared:
            raise ConfigError(f"{rules.locate(path)} is not for models that prepare their inputs")
    spec = replace(
        spec.with_batched_inputs([_filled(tensor, rules) for tensor in inputs]),
        outputs=tuple(
            replace(tensor, shaped_like=rules.shaped_like.get(tensor.name, ""))
            for tensor in spec.outputs
        ),
        made=rules.batch_inputs,
    )
    try:
        return set_masks_apart(spec)
    except ValueError as error:
        for name, made_of in rules.masks.items():
            if f"'{name}'" in str(error) or f"'{made_of}'" in str(error):
                raise ConfigError(f"{rules.locate(_parameter('mask', name))}: {error}") from None
        raise


def set_masks_apart(spec: ModelSpec) -> ModelSpec:
    """Move the inputs with `mask_of` to those that the server makes; pad what they are made of.

    Raises:
        ValueError: a mask is made of an input that is none, is a mask itself, may be left out,
            or cannot be padded.
    """
    inputs = spec.batched_inputs
    masks = [tensor for tensor in inputs if tensor.mask_of]
    if not masks:
        return spec
    if not spec.max_batch_size:
        raise ValueError(f"input '{masks[0].name}': only batches need a mask, the model has none")
    sent = {tensor.name: tensor for tensor in inputs if not tensor.mask_of}
    for mask in masks:
        source = sent.get(mask.mask_of)
        if source is None:
            raise ValueError(
                f"input '{mask.name}' is to be the mask of '{mask.mask_of}', which is not among "
                f"the inputs that clients send: {_listed(sent.values()) or 'none'}"
            )
        if source.optional and source.default is None:
            raise ValueError(f"input '{mask.name}': its source '{source.name}' may be left out")
        if source.pad is None:
            sent[source.name] = replace(source, pad=0)
    made = [MadeInput(replace(mask, mask_of=""), Making.MASK, mask.mask_of) for mask in masks]
    return replace(spec.with_batched_inputs([*sent.values()]), made=(*made, *spec.made))


def _filled(tensor: TensorSpec, rules: RaggedRules) -> TensorSpec:
    """Apply the rules for one input; whatever does not fit it is named with its line."""
    name = tensor.name
    path = ""
    try:
        if name in rules.pads:
            path = _parameter("pad", name)
            tensor = replace(tensor, pad=rules.pads[name])
        if name in rules.masks:
            path = _parameter("mask", name)
            tensor = replace(tensor, mask_of=rules.masks[name])
        if name in rules.defaults:
            path = _parameter("default", name)
            # A pad that a mask will bring is not there yet.
            covered = name in rules.masks.values() and tensor.pad is None
            tensor = replace(tensor, pad=0) if covered else tensor
            tensor = replace(tensor, default=rules.defaults[name])
        if name in rules.flat:
            path = rules.flat[name]
            tensor = replace(tensor, flat=True)
    except ValueError as error:
        raise ConfigError(f"{rules.locate(path)}: {error}") from None
    return tensor


def _batch_inputs(config: ModelConfig) -> Iterator[MadeInput]:
    ranks = {tensor.name: len(tensor.dims) for tensor in config.input}
    for entry in config.batch_input:
        source = entry.source_input[0]
        making = Making(BatchInput.Kind.Name(entry.kind))
        shape = (DYNAMIC, ranks[source]) if making is Making.ITEM_SHAPE else (DYNAMIC,)
        for name in entry.target_name:
            tensor = TensorSpec(name, protocol_type(entry.data_type), shape)
            yield MadeInput(tensor, making, source)


def _number(key: str, value: str, locate: Locate) -> float:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        or_none = f", or {NEVER}" if key.startswith("pad") else ""
        raise ConfigError(
            f"{locate(_key(key))} must have a number{or_none} as its string_value, got '{value}'"
        ) from None


def _parameter(what: str, name: str) -> str:
    return _key(f"{what}:{name}")


def _key(key: str) -> str:
    return f'parameters["{key}"]'


def _listed(tensors: Iterable[TensorSpec]) -> str:
    return ", ".join(f"'{tensor.name}'" for tensor in tensors)

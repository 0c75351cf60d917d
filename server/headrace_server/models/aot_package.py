"""Loads an AOTInductor package (`model.pt2`), with the names, types and shapes of its config.pbtxt.

A package is native code for one kind of machine, and runs as the server's user. It checks nothing
that it is given: a wrong type or length makes it read what lies beside its inputs. So it is
questioned before it serves (`aot_questions`), its answers are held against the configuration, and
from then on the server keeps everything else away from it.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree  # no public name before torch 2.10

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.aot_questions import (
    InputFacts,
    Tie,
    checking_inputs,
    number_of_inputs,
    question,
)
from headrace_server.models.compilation import Runner, open_package
from headrace_server.models.config_text import locate_in
from headrace_server.models.datatypes import config_type_name
from headrace_server.models.errors import ConfigError, ModelError
from headrace_server.models.exported_signature import PLATFORM, member_names
from headrace_server.models.load_options import load_options
from headrace_server.models.program import Inputs, Parameters, Program
from headrace_server.models.ragged import read_rules, with_ragged_inputs
from headrace_server.models.repository import ModelSource
from headrace_server.models.signature import Signature, positions, reconcile, spec_from_config
from headrace_server.models.spec import DYNAMIC, ModelSpec, TensorSpec
from headrace_server.models.torch_types import DATATYPE_OF, TORCH_DTYPES

ORIGIN = "the AOTInductor package"


def load_package(source: ModelSource, config: ModelConfig | None, device: str) -> Program:
    """Load a package, hold the configuration against it, and tie names to places.

    Names are those of the arguments of `forward` where it took them by keyword, and the keys of
    the dict that it returned; else `<any>__<i>`, or the configuration's order. Of its inputs the
    package knows the type and every dimension; outputs are checked when they come.

    Raises:
        ModelError: it is for another device or machine, or cannot say what it takes.
        ConfigError: the configuration says too little, or contradicts the package.
    """
    file, locate = source.file, locate_in(source.config_file)
    options = load_options(config, locate)
    if options:
        raise ModelError(f"{file}: a package runs as it was compiled, without '{options}'")
    with checking_inputs():
        package = _opened(file, device)
        taken, returned = (pytree.treespec_loads(text) for text in package.get_call_spec())
        count = number_of_inputs(package.boxed_run, file)
        arguments, results = _argument_names(taken, count), member_names(returned)
        if config is None or not config.input or not config.output:
            raise ConfigError(
                f"{source.config_file}: AOTInductor packages carry no types and shapes; expected a "
                f"config with inputs {_shown(arguments, 'INPUT', count)} and outputs "
                f"{_shown(results, 'OUTPUT', returned.num_leaves)}, each with data_type and dims"
            )
        rules = read_rules(source, config)
        if rules.triton:
            path = next(rules.paths())
            raise ConfigError(f"{locate(path)} is not for AOTInductor packages")
        written = spec_from_config(source, config, PLATFORM)
        _check_datatypes(written, source)
        inputs = _in_order("input", written.inputs, arguments, count, source)
        outputs = _in_order("output", written.outputs, results, returned.num_leaves, source)
        batched = written.max_batch_size > 0
        guesses = [
            (tensor.name, TORCH_DTYPES[tensor.datatype], len(tensor.shape) + batched)
            for tensor in inputs
        ]
        facts, ties = question(package.boxed_run, guesses, file)
    names = [tensor.name for tensor in inputs]
    signature = _signature(names, outputs, facts, batched)
    spec = with_ragged_inputs(reconcile(signature, source, config, rules), rules)
    # Opened anew: the code looks once, at its first call, whether it is to check its inputs.
    run: Runner = _opened(file, device).boxed_run
    if batched:  # rows are equal in number anyway
        ties = [tie for tie in ties if any(axis for _, axis in tie)]
    sent = {tensor.name for tensor in spec.inputs}
    groups = [
        tuple((names[i], axis - batched) for i, axis in tie if axis >= batched and names[i] in sent)
        for tie in ties
    ]
    spec = replace(spec, one_length=tuple(group for group in groups if len(group) > 1))
    examples = {name: fact.sizes[batched:] for name, fact in zip(names, facts, strict=True)}
    return AotModel(run, spec, names, outputs, ties, examples)


class AotModel:
    """A package that takes inputs, called by ``names`` in its order, and returns ``outputs``."""

    overwrites_outputs = True  # it does not say whether it changes its buffers

    def __init__(
        self,
        run: Runner,
        spec: ModelSpec,
        names: Sequence[str],
        outputs: Sequence[TensorSpec],
        ties: Sequence[Tie],
        example_shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._run: Runner | None = run
        self._names = names
        self._outputs = [output.name for output in outputs]
        self._ties = ties
        self.example_shapes = example_shapes
        self.spec = spec

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        """See `Program.call`. Raises ModelError for lengths that should be equal and are not."""
        assert self._run is not None, "the model is closed"
        ordered: list[Any] = [inputs[name] for name in self._names]
        for tie in self._ties:
            lengths = {
                f"{self._names[place]}[{axis}]": ordered[place].shape[axis] for place, axis in tie
            }
            if len(set(lengths.values())) > 1:
                raise ModelError(f"expected equal lengths, got {lengths}")
        return dict(zip(self._outputs, self._run(ordered), strict=True))

    def close(self) -> None:
        """See `Program.close`."""
        self._run = None


def _opened(file: Path, device: str) -> Any:
    try:
        package = open_package(file)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{file}: expected an AOTInductor package for this machine with one model called "
            f"'model', got {type(error).__name__}: {first_line}"
        ) from error
    compiled_for = package.get_metadata().get("AOTI_DEVICE_KEY", "")
    wanted = torch.device(device).type
    if compiled_for and compiled_for != wanted:
        raise ModelError(f"{file}: compiled for {compiled_for}, but its workers are on {wanted}")
    return package


def _argument_names(taken: pytree.TreeSpec, count: int) -> list[str] | None:
    """The names of arguments that were all given by keyword, in order; else None."""
    positional, named = pytree.tree_unflatten(list(range(taken.num_leaves)), taken)
    if positional or taken.num_leaves != count or len(named) != count:
        return None
    return [*named]


def _check_datatypes(spec: ModelSpec, source: ModelSource) -> None:
    for side, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for index, tensor in enumerate(tensors):
            if tensor.datatype not in TORCH_DTYPES:
                where = locate_in(source.config_file)(f"{side}[{index}].data_type")
                raise ConfigError(
                    f"{where} is {config_type_name(tensor.datatype)}; packages serve numbers only"
                )


def _in_order(
    side: str,
    written: Sequence[TensorSpec],
    own: Sequence[str] | None,
    count: int,
    source: ModelSource,
) -> list[TensorSpec]:
    """The tensors of the configuration in the order of the package."""
    names = [tensor.name for tensor in written]
    by_name = dict(zip(names, written, strict=True))
    if len(names) == count:
        if own is not None and set(own) == set(names):
            return [by_name[name] for name in own]
        numbers = positions(names)
        if numbers is not None and sorted(numbers) == [*range(count)]:
            return [tensor for _, tensor in sorted(zip(numbers, written, strict=True))]
        if own is None and numbers is None:
            return [*written]
    raise ConfigError(
        f"{locate_in(source.config_file)(side)} names {names}, but {ORIGIN} has {count}; "
        f"write {_shown(own, side.upper(), count)}"
    )


def _signature(
    names: Sequence[str],
    outputs: Sequence[TensorSpec],
    facts: Sequence[InputFacts],
    batched: bool,
) -> Signature:
    reason, limit = "", None
    for name, fact in zip(names, facts, strict=True) if batched else ():
        if 0 not in fact.bounds:
            reason = reason or f"dimension 0 of input '{name}' is fixed at {fact.sizes[0]}"
        elif fact.bounds[0][1] != DYNAMIC:
            limit = min(limit or fact.bounds[0][1], fact.bounds[0][1])
    return Signature(
        origin=ORIGIN,
        platform=PLATFORM,
        inputs=tuple(
            _tensor(name, fact, skipped=1 if batched else 0)
            for name, fact in zip(names, facts, strict=True)
        ),
        outputs=tuple(outputs),
        max_batch_size=0 if reason or not batched else limit or 1,
        batch_limit=limit,
        unbatched_because=reason,
    )


def _tensor(name: str, fact: InputFacts, *, skipped: int) -> TensorSpec:
    """What the package takes, as the protocol describes it; without the batch dimension."""
    axes = range(skipped, len(fact.sizes))
    bounds = [fact.bounds.get(axis, (0, DYNAMIC)) for axis in axes]
    limited = any(bound != (0, DYNAMIC) for bound in bounds)
    return TensorSpec(
        name,
        DATATYPE_OF[fact.dtype],
        [DYNAMIC if axis in fact.bounds else fact.sizes[axis] for axis in axes],
        bounds=bounds if limited else (),
    )


def _shown(names: Sequence[str] | None, side: str, count: int) -> str:
    return ", ".join(f"'{name}'" for name in names or [f"{side}__{i}" for i in range(count)])

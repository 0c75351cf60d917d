"""Loads `model.pt2`: a program written by `torch.export.save`. Needs no configuration.

A package of AOTInductor has the same name and is left to `aot_package`.

An exported program is a graph of operators with its weights. Weights and constants that are pickled
Python objects are refused unless the operator allows them, but that makes no sandbox: the graph may
ask for anything that can be reached from the name `torch`, and sizes are expressions that sympy
evaluates. It deserves the trust of a model, not that of a stranger's upload.

Workers only: imports torch.
"""

from __future__ import annotations

import logging
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree  # no public name before torch 2.10

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.aot_package import load_package
from headrace_server.models.compilation import compiled_program
from headrace_server.models.config_text import locate_in
from headrace_server.models.errors import ModelError
from headrace_server.models.exported_graph import Forward, plain_function
from headrace_server.models.exported_padding import padded
from headrace_server.models.exported_ragged import concatenated_examples, concatenated_signature
from headrace_server.models.exported_signature import PLATFORM, ProgramTensors, read_tensors
from headrace_server.models.load_options import LoadOptions, load_options
from headrace_server.models.precision import require_cpu, require_layers
from headrace_server.models.program import Inputs, Parameters, Program
from headrace_server.models.ragged import read_rules, with_ragged_inputs
from headrace_server.models.repository import ModelSource
from headrace_server.models.row_check import why_rows_do_not_batch
from headrace_server.models.signature import Signature, reconcile
from headrace_server.models.spec import ModelSpec

DEFAULT_MAX_BATCH_SIZE = 64
"""For a batch dimension without an upper bound, when the configuration names none either."""

log = logging.getLogger("headrace.models")


def load_exported(
    source: ModelSource, config: ModelConfig | None, device: str, weights: int | None = None
) -> Program:
    """Load the program and read its signature.

    Inputs are called as in the exported `forward`, outputs by the keys of the dict (or fields of
    the named tuple or dataclass) that it returns, else `OUTPUT__0`, `OUTPUT__1`, ... A
    configuration may rename such nameless outputs, and inputs to `<any>__0`, `<any>__1`, ...

    Dimension 0 is the batch dimension if it is dynamic and the same in every input and output,
    no other dimension depends on it, and trying it out gives every row the answer that it gets
    alone. That try is skipped where the configuration names a `max_batch_size`.

    Requests of different lengths are padded as the configuration's parameters say, or as
    `exported_padding` finds out; with Triton's `allow_ragged_batch` they are concatenated.

    ``weights`` is the descriptor of the memory file in which workers on the CPU share them, if any.

    Raises:
        ModelError: the file is no exported program, or not one of plain tensors.
        ConfigError: the configuration contradicts the program.
    """
    if is_package(source.file, pickle=source.pickle):
        return load_package(source, config, device)
    options = load_options(config, locate_in(source.config_file))
    program = _on_device(_load(source.file), device)
    if weights is not None and not options:  # these make weights of their own
        from headrace_server.models.shared_weights import share_weights  # Linux only

        try:
            share_weights(program, weights)
        except OSError as error:  # no memory for them, say: they stay where they are
            log.warning("the weights are not shared: %s", error)
    tensors = read_tensors(program, source.file)
    # Whatever is tried out is tried with the program as it was saved.
    call = _Call(plain_function(program)[0], tensors)
    rules = read_rules(source, config)
    if rules.triton:
        assert config is not None, "only a configuration has such rules"
        signature = concatenated_signature(tensors, config, rules, source)
        spec = with_ragged_inputs(reconcile(signature, source, config, rules), rules)
        names = [tensor.name for tensor in tensors.inputs]
        examples = concatenated_examples(tensors, spec)
    else:
        asked = config.max_batch_size if config else 0
        whole = reconcile(_signature(call, tensors, asked, device), source, config, rules)
        names = [tensor.name for tensor in whole.inputs]
        spec = padded(whole, tensors, call, rules, device, derive=not _batches_as_triton(config))
        skipped = 1 if spec.max_batch_size else 0
        spec = replace(spec, one_length=_one_length(tensors, names, spec, skipped))
        shapes = zip(names, tensors.example_shapes(rows=1), strict=True)
        examples = {name: shape[skipped:] for name, shape in shapes}
    if options:
        call = _Call(_faster(program, tensors, options, source.file, device), tensors)
    mutates = bool(program.graph_signature.buffers_to_mutate)
    return ExportedModel(call, names, spec, examples, overwrites_outputs=mutates)


def _faster(
    program: ExportedProgram,
    tensors: ProgramTensors,
    options: LoadOptions,
    file: Path,
    device: str,
) -> Forward:
    if options.precision:
        require_cpu(options.precision, device, file)
        forward, count = plain_function(program, options.precision)
        require_layers(count, options.precision, file)
        return forward
    run = compiled_program(program, options.compile, file)
    slots = tensors.slots
    return lambda *leaves: tuple(run([leaves[slot] for slot in slots]))


class ExportedModel:
    """An exported program that takes its inputs, called by ``names`` in its order, by name."""

    def __init__(
        self,
        call: _Call,
        names: Sequence[str],
        spec: ModelSpec,
        example_shapes: Mapping[str, Sequence[int]],
        *,
        overwrites_outputs: bool,
    ) -> None:
        self._call: _Call | None = call
        self._names = names
        self.spec = spec
        self.example_shapes = example_shapes
        self.overwrites_outputs = overwrites_outputs

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        """See `Program.call`; returns the outputs in order."""
        assert self._call is not None, "the model is closed"
        return self._call([inputs[name] for name in self._names])

    def close(self) -> None:
        """See `Program.close`."""
        self._call = None


class _Call:
    """Calls the program with its tensor inputs in order; returns its outputs in order."""

    def __init__(self, forward: Forward, tensors: ProgramTensors) -> None:
        self._forward = forward
        self._leaves = list(tensors.leaves)
        self._slots = tensors.slots
        self._lengths = _LengthCheck(tensors)

    def __call__(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        self._lengths.check(inputs)
        leaves = self._leaves.copy()
        for slot, value in zip(self._slots, inputs, strict=True):
            leaves[slot] = value
        answer: tuple[Any, ...] = tuple(self._forward(*leaves))
        return answer


class _LengthCheck:
    """Holds inputs against the lengths that the program was exported for.

    Beyond them operators may read past a table's end, and on a GPU that ends the whole process.
    """

    def __init__(self, tensors: ProgramTensors) -> None:
        numbers = {symbol: number for number, symbol in enumerate(tensors.lengths)}
        self._names = [tensor.name for tensor in tensors.inputs]
        self._places = [
            (position, dimension, numbers[symbol], tensors.lengths[symbol])
            for position, tensor in enumerate(tensors.inputs)
            for dimension, symbol in tensor.symbols()
            if symbol in numbers
        ]

    def check(self, inputs: Sequence[torch.Tensor]) -> None:
        """Raise ModelError for a length out of range, or not equal where it should be."""
        seen: dict[int, int] = {}
        for position, dimension, number, allowed in self._places:
            length = inputs[position].shape[dimension]
            if not allowed.accepts(length):
                expected = f"{allowed}"
            elif seen.setdefault(number, length) != length:
                expected = f"{seen[number]}, as in another input"
            else:
                continue
            raise ModelError(
                f"dimension {dimension} of '{self._names[position]}': expected {expected}, "
                f"got {length}"
            )


def _one_length(
    tensors: ProgramTensors, names: Sequence[str], spec: ModelSpec, skipped: int
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """The dimensions of what clients send that the program was exported to have in common."""
    sent = {tensor.name for tensor in spec.inputs}
    places: dict[Any, list[tuple[str, int]]] = defaultdict(list)
    for name, tensor in zip(names, tensors.inputs, strict=True):
        for dimension, symbol in tensor.symbols():
            if name in sent and dimension >= skipped and symbol in tensors.lengths:
                places[symbol].append((name, dimension - skipped))
    return tuple(tuple(group) for group in places.values() if len(group) > 1)


def _batches_as_triton(config: ModelConfig | None) -> bool:
    """Whether requests of different lengths stay apart because they do in Triton."""
    return config is not None and config.HasField("dynamic_batching")


def _signature(call: _Call, tensors: ProgramTensors, asked: int, device: str) -> Signature:
    limit = None
    reason = tensors.unbatched_because
    if not reason:
        assert tensors.batch is not None
        limit = tensors.batch.upper
        reason = why_rows_do_not_batch(call, tensors, device, trusted=asked > 0)
        if reason:
            log.warning("served without batching: %s", reason)
    batched = not reason
    return Signature(
        origin="the exported program",
        platform=PLATFORM,
        inputs=tensors.input_specs(batched=batched),
        outputs=tensors.output_specs(batched=batched),
        max_batch_size=(limit or DEFAULT_MAX_BATCH_SIZE) if batched else 0,
        batch_limit=limit,
        unbatched_because=reason,
        can_drop_batch=True,
        positional_inputs=True,
        positional_outputs=not tensors.outputs_named,
    )


def _on_device(program: ExportedProgram, device: str) -> ExportedProgram:
    target = torch.device(device)
    used = {
        value.device
        for node in program.graph.nodes
        for value in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(value, torch.Tensor)
    }
    if used <= {target}:
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _load(file: Path) -> ExportedProgram:
    with _kept_log() as kept:
        try:
            return torch.export.load(file)
        except Exception as error:
            cause = kept[-1] if kept else error
            if isinstance(cause, UnpicklingError):
                raise cause from error
            raise ModelError(
                f"{file}: expected a program saved by torch.export.save that torch "
                f"{torch.__version__} can read, got {type(cause).__name__}: {cause}"
            ) from error


@contextmanager
def _kept_log() -> Iterator[list[BaseException]]:
    """Keep the exceptions that torch.export only logs, and what it logs about them off stderr."""
    kept: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            kept.append(record.exc_info[1])
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        yield kept
    finally:
        logger.removeFilter(keep)


def is_package(file: Path, *, pickle: bool) -> bool:
    """Whether a file is an AOTInductor package and no exported program. Recognises by their
    contents the files that are often mistaken for either.

    Raises:
        ModelError: it is one of those.
        UnpicklingError: torch would unpickle it.
    """
    expected = f"{file}: expected a program saved by torch.export.save, found"
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ModelError(f"{expected} no zip archive; is it complete?") from None
    if not pickle and any("/data/constants/opaque_obj_" in name for name in names):
        raise UnpicklingError("an opaque constant")  # torch would call pickle.loads on it
    if any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(f"{expected} TorchScript; name it model.pt and add a config.pbtxt")
    if any(name.endswith("/data.pkl") for name in names):
        raise ModelError(f"{expected} what torch.save writes; export the model, not its weights")
    return any("/data/aotinductor/" in name for name in names)

"""Reads the tensors of an exported program: names, datatypes, shapes, and its batch dimension.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from headrace_server.models.errors import ModelError
from headrace_server.models.spec import DYNAMIC, TensorSpec
from headrace_server.models.torch_types import DATATYPE_OF

PLATFORM = "pytorch_pt2"

EXAMPLE_LENGTH = 16
"""Length of a dynamic dimension in examples, where the program allows it."""

_NO_LENGTHS: Mapping[Any, int] = MappingProxyType({})

_UNBOUNDED = 1 << 31
"""From here on an upper bound is torch's way of saying that there is none."""


@dataclass(frozen=True, slots=True)
class DynamicLength:
    """The range of one symbol of the program. ``upper`` None: unbounded."""

    symbol: Any
    lower: int
    upper: int | None

    @property
    def example(self) -> int:
        """The length in the range that is nearest to `EXAMPLE_LENGTH`."""
        return max(self.lower, min(EXAMPLE_LENGTH, self.upper or EXAMPLE_LENGTH))

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest length; -1 for no greatest.

        A lower bound of 2 is none: torch records it for every dimension that was exported with
        two or more, and `torch.export` itself lets 0 and 1 pass there.
        """
        least = 0 if self.lower <= 2 else self.lower
        return least, DYNAMIC if self.upper is None else self.upper

    def accepts(self, length: int) -> bool:
        """Say whether ``length`` is in the range."""
        least, greatest = self.bounds
        return length >= least and (greatest == DYNAMIC or length <= greatest)

    def __str__(self) -> str:
        return f"{self.lower} or more" if self.upper is None else f"{self.lower} to {self.upper}"


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """One tensor of the program; the dimensions in ``shape`` are ints or torch's symbols."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | torch.SymInt, ...]

    def spec(self, lengths: Mapping[Any, DynamicLength], *, batched: bool) -> TensorSpec:
        """Describe it as the protocol does; the batch dimension is left out if there is one."""
        dims = [dim if isinstance(dim, int) else DYNAMIC for dim in self.shape]
        bounds = [(0, DYNAMIC)] * len(dims)
        for dimension, symbol in self.symbols():
            if symbol in lengths:
                bounds[dimension] = lengths[symbol].bounds
        skipped = 1 if batched else 0
        limited = any(bound != (0, DYNAMIC) for bound in bounds[skipped:])
        return TensorSpec(
            self.name,
            DATATYPE_OF[self.dtype],
            dims[skipped:],
            bounds=bounds[skipped:] if limited else (),
        )

    def expression(self, dimension: int) -> Any:
        """Return the sympy expression of a dimension; None if it is fixed."""
        return _expression(self.shape[dimension])

    def symbols(self) -> Iterator[tuple[int, Any]]:
        """Yield each dynamic dimension with its sympy expression."""
        for index, dim in enumerate(self.shape):
            expression = _expression(dim)
            if expression is not None:
                yield index, expression


@dataclass(frozen=True, slots=True)
class ProgramTensors:
    """The inputs and outputs of a program, in its order.

    ``leaves`` are the flat arguments of a call, with the constants it was exported with;
    ``slots`` are the places among them where the inputs go. ``lengths`` are the ranges of the
    dynamic dimensions, by their symbols. ``batch`` is the length of the batch dimension, None if
    there is none, for the reason ``unbatched_because``.
    """

    inputs: tuple[NamedTensor, ...]
    outputs: tuple[NamedTensor, ...]
    outputs_named: bool
    leaves: tuple[Any, ...]
    slots: tuple[int, ...]
    lengths: Mapping[Any, DynamicLength]
    batch: DynamicLength | None
    unbatched_because: str

    def input_specs(self, *, batched: bool) -> tuple[TensorSpec, ...]:
        """Return the specs of the inputs, with or without the batch dimension."""
        return tuple(tensor.spec(self.lengths, batched=batched) for tensor in self.inputs)

    def output_specs(self, *, batched: bool) -> tuple[TensorSpec, ...]:
        """Return the specs of the outputs, with or without the batch dimension."""
        return tuple(tensor.spec({}, batched=batched) for tensor in self.outputs)

    def example_shapes(
        self, rows: int, lengths: Mapping[Any, int] = _NO_LENGTHS
    ) -> list[tuple[int, ...]]:
        """Return full input shapes that the program takes, with ``rows`` in a batch dimension.

        Symbols that ``lengths`` does not name have the length nearest to `EXAMPLE_LENGTH`.
        """
        values = {symbol: length.example for symbol, length in self.lengths.items()}
        values |= lengths
        if self.batch is not None:
            values[self.batch.symbol] = rows
        return [
            tuple(
                dim if isinstance(dim, int) else int(dim.node.expr.subs(values))
                for dim in tensor.shape
            )
            for tensor in self.inputs
        ]


def read_tensors(program: ExportedProgram, file: Path) -> ProgramTensors:
    """Read what ``program`` takes and returns.

    Raises:
        ModelError: it takes or returns something else than tensors of the protocol's datatypes.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    returned = program.call_spec.out_spec
    assert returned is not None

    def named(name: str, what: str, argument: object) -> NamedTensor:
        value = values.get(argument.name) if isinstance(argument, TensorArgument) else None
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{file}: expected tensors only, {what} '{name}' is none")
        if value.dtype not in DATATYPE_OF:
            raise ModelError(f"{file}: {what} '{name}' is {value.dtype}, which no datatype carries")
        return NamedTensor(name, value.dtype, tuple(value.shape))

    inputs: list[NamedTensor] = []
    slots: list[int] = []
    leaves: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            leaves.append(spec.arg.value)
            continue
        slots.append(len(leaves))
        leaves.append(None)
        inputs.append(named(spec.arg.name, "input", spec.arg))

    arguments = [
        spec.arg
        for spec in program.graph_signature.output_specs
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    names = member_names(returned)
    outputs = [
        named(names[index] if names else f"OUTPUT__{index}", "output", argument)
        for index, argument in enumerate(arguments)
    ]
    if not outputs:
        raise ModelError(f"{file}: expected a program that returns tensors, it returns none")

    lengths = {
        symbol: DynamicLength(symbol, max(1, int(bounds.lower)), _bound(bounds.upper))
        for symbol, bounds in program.range_constraints.items()
    }
    reason = _why_unbatched(inputs, outputs)
    batch = None if reason else lengths[_expression(inputs[0].shape[0])]
    return ProgramTensors(
        tuple(inputs),
        tuple(outputs),
        names is not None,
        tuple(leaves),
        tuple(slots),
        lengths,
        batch,
        reason,
    )


def member_names(structure: pytree.TreeSpec) -> list[str] | None:
    """Return the names that a returned container gives its members; None if it gives none."""
    answer = pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
    members: dict[Any, Any] = {}
    if isinstance(answer, Mapping):
        members = dict(answer)
    elif hasattr(answer, "_fields"):
        members = dict(zip(answer._fields, answer, strict=True))
    elif is_dataclass(answer):
        members = {field.name: getattr(answer, field.name) for field in fields(answer)}
    by_leaf = {leaf: name for name, leaf in members.items() if isinstance(leaf, int)}
    if len(by_leaf) != structure.num_leaves or not by_leaf:
        return None
    return [str(by_leaf[leaf]) for leaf in range(structure.num_leaves)]


def _why_unbatched(inputs: Sequence[NamedTensor], outputs: Sequence[NamedTensor]) -> str:
    """Say why dimension 0 is no batch dimension; empty if it is one."""
    if not inputs:
        return "the program has no inputs"
    batch = None
    for side, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            what = f"{side} '{tensor.name}'"
            if not tensor.shape:
                return f"{what} has no dimensions"
            symbol = _expression(tensor.shape[0])
            if symbol is None:
                return f"dimension 0 of {what} is fixed at {tensor.shape[0]}"
            if not symbol.is_Symbol or (batch is not None and symbol != batch):
                return f"dimension 0 of {what} is not that of input '{inputs[0].name}'"
            batch = symbol
    for tensor in (*inputs, *outputs):
        for index, expression in tensor.symbols():
            if index and batch in expression.free_symbols:
                return f"dimension {index} of '{tensor.name}' depends on dimension 0"
    return ""


def _expression(dim: int | torch.SymInt) -> Any:
    """Return the sympy expression of a dynamic dimension, None for a fixed one."""
    return None if isinstance(dim, int) else dim.node.expr


def _bound(upper: Any) -> int | None:
    """Return an upper bound as a number; infinity is a number of its own kind in torch."""
    return int(upper) if upper.is_Integer and upper < _UNBOUNDED else None

"""Finds out what an AOTInductor package takes: types, sizes and ranges of its inputs.

Its code can hold inputs against what it was compiled for: types, sizes and strides, one input after
the other. Tensors whose last stride is wrong are therefore refused before anything is
computed, and what the refusal says is an answer: the texts are those of torch 2.9 to 2.13.

Workers only: imports torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path

import torch

from headrace_server.models.compilation import Runner
from headrace_server.models.errors import ModelError
from headrace_server.models.spec import DYNAMIC

CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"

EXAMPLE_LENGTH = 16
"""Length of a dimension before anything is known of it."""

HUGE_LENGTH = (1 << 31) - 1
"""Beyond every bound. It takes no memory: all elements of such a tensor are one."""

MAX_TIES = 8
"""Dynamic dimensions that depend on one another; finding out how takes up to two to that power
runs."""

Tie = tuple[tuple[int, int], ...]
"""Dimensions that must be equal, each as (input, dimension)."""

_COUNT = re.compile(r"expected inputs vector size to be (\d+)")
_DTYPE = re.compile(r"input_handles\[(\d+)\]: unmatched dtype, expected: \d+\(at::k(\w+)\)")
_SIZE = re.compile(r"input_handles\[(\d+)\]: unmatched dim value at (\d+), expected: (\d+)")
_RANGE = re.compile(
    r"input_handles\[(\d+)\]: dim value is too (large|small) at (\d+), "
    r"expected (?:it )?to be [<>]= (\d+)"
)
_STRIDE = re.compile(r"input_handles\[(\d+)\]: unmatched stride value at (\d+)")

_TYPES: Mapping[str, torch.dtype] = {
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Half": torch.half,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "UInt16": torch.uint16,
    "UInt32": torch.uint32,
    "UInt64": torch.uint64,
}


@dataclass(slots=True)
class InputFacts:
    """What a package takes for one input. ``sizes`` are fixed ones or, where ``bounds`` has an
    entry (least, greatest or -1), examples."""

    dtype: torch.dtype
    sizes: list[int]
    bounds: dict[int, tuple[int, int]]


@contextmanager
def checking_inputs() -> Iterator[None]:
    """Packages that are first called inside check their inputs from then on. What they print about
    it is swallowed."""
    before = os.environ.get(CHECK_INPUTS)
    os.environ[CHECK_INPUTS] = "1"
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        del os.environ[CHECK_INPUTS]
        if before is not None:
            os.environ[CHECK_INPUTS] = before


def number_of_inputs(ask: Runner, file: Path) -> int:
    """How many tensors a package takes. Raises ModelError where it does not tell."""
    found = _COUNT.search(_refusal(ask, []))
    if found is None:
        raise _silent(file, "how many inputs it takes")
    return int(found[1])


def question(
    ask: Runner, guesses: Sequence[tuple[str, torch.dtype, int]], file: Path
) -> tuple[list[InputFacts], list[Tie]]:
    """Find out what a package takes, inside `checking_inputs`.

    Args:
        ask: runs it.
        guesses: name, type and number of dimensions of each input; all but the type must be right.
        file: where it lies.

    Returns:
        What it takes for each input, and which of the dynamic dimensions must be equal.

    Raises:
        ModelError: it has another number of dimensions, or does not check its inputs.
    """
    facts: list[InputFacts] = []
    for name, dtype, rank in guesses:
        later = [
            torch.zeros([1] * rank, dtype=dtype) for _, dtype, rank in guesses[len(facts) + 1 :]
        ]
        facts.append(_Dialogue(ask, name, [*map(_zeros, facts)], later, file).facts(dtype, rank))
    return facts, _ties(ask, facts, file)


@dataclass(frozen=True, slots=True)
class _Dialogue:
    """About one input. Those before it are known, those behind it are not looked at."""

    ask: Runner
    name: str
    earlier: list[torch.Tensor]
    later: list[torch.Tensor]
    file: Path

    def facts(self, dtype: torch.dtype, rank: int) -> InputFacts:
        found = InputFacts(dtype, [EXAMPLE_LENGTH] * rank, {})
        for _ in range(3 * rank + 2):  # each answer settles a type, a size or one end of a range
            said = self._said(_hollow(found))
            if match := _DTYPE.search(said):
                if match[2] not in _TYPES:
                    raise ModelError(
                        f"{self.file}: input '{self.name}' is {match[2]}, which no datatype carries"
                    )
                found.dtype = _TYPES[match[2]]
            elif (match := _SIZE.search(said)) and int(match[2]) < rank:
                found.sizes[int(match[2])] = int(match[3])
            elif (match := _RANGE.search(said)) and int(match[3]) < rank:
                found.sizes[int(match[3])] = int(match[4])
            else:
                break
        match = _STRIDE.search(said)
        if rank and (match is None or int(match[2]) != rank - 1):
            raise _silent(self.file, f"what it takes for '{self.name}', or not {rank} dimensions")
        for dimension in range(rank):
            limits = self._limits(found, dimension)
            if limits is not None:
                found.bounds[dimension] = limits
        return found

    def _limits(self, found: InputFacts, dimension: int) -> tuple[int, int] | None:
        """The range of a dimension; None if it is fixed."""
        least, greatest = 0, DYNAMIC
        for length in (HUGE_LENGTH, 0):
            sizes = [*found.sizes]
            sizes[dimension] = length
            said = self._said(torch.zeros(1, dtype=found.dtype).expand(sizes))
            if _SIZE.search(said):
                return None
            if match := _RANGE.search(said):
                if length:
                    greatest = int(match[4])
                else:
                    least = int(match[4])
        # torch records 2 for every dimension that was exported with two or more; 0 and 1 pass.
        return (0 if least <= 2 else least), greatest

    def _said(self, tensor: torch.Tensor) -> str:
        """What is said of this input; nothing of others."""
        said = _refusal(self.ask, [*self.earlier, tensor, *self.later])
        return said if f"input_handles[{len(self.earlier)}]" in said else ""


def _ties(ask: Runner, facts: Sequence[InputFacts], file: Path) -> list[Tie]:
    """Which dynamic dimensions must be equal, found by changing them by 1."""
    said = _refusal(ask, [*map(_zeros, facts)])
    if said:
        first_line = said.partition("\n")[0]
        raise ModelError(f"{file}: refuses inputs that it should take: {first_line}")

    def may_change(dimensions: Sequence[tuple[int, int]]) -> bool:
        changed = [
            [
                size + _step(fact, dimension) if (index, dimension) in dimensions else size
                for dimension, size in enumerate(fact.sizes)
            ]
            for index, fact in enumerate(facts)
        ]
        tensors = [
            torch.zeros(sizes, dtype=fact.dtype) for sizes, fact in zip(changed, facts, strict=True)
        ]
        return not _refusal(ask, tensors)

    dynamic = [(index, place) for index, fact in enumerate(facts) for place in sorted(fact.bounds)]
    tied = [place for place in dynamic if not may_change([place])]
    if len(tied) > MAX_TIES:
        raise ModelError(f"{file}: more than {MAX_TIES} dynamic dimensions depend on one another")
    ties: list[Tie] = []
    while tied:
        first, *others = tied
        sets = (
            (first, *chosen)
            for count in range(1, len(others) + 1)
            for chosen in combinations(others, count)
        )
        tie = next((places for places in sets if may_change(places)), None)
        if tie is None:
            raise ModelError(
                f"{file}: dimension {first[1]} of input {first[0]} follows a rule that is not "
                "equality; serve the exported program itself"
            )
        ties.append(tie)
        tied = [place for place in tied if place not in tie]
    return ties


def _step(fact: InputFacts, dimension: int) -> int:
    greatest = fact.bounds[dimension][1]
    return -1 if fact.sizes[dimension] == greatest else 1


def _zeros(fact: InputFacts) -> torch.Tensor:
    return torch.zeros(fact.sizes, dtype=fact.dtype)


def _hollow(fact: InputFacts) -> torch.Tensor:
    """Of these sizes, with every stride right but the last, which should be 1."""
    strides = [*accumulate(reversed(fact.sizes), lambda a, b: a * b, initial=1)][-2::-1]
    memory = torch.zeros(math.prod(fact.sizes), dtype=fact.dtype)
    return memory.as_strided(fact.sizes, [*strides[:-1], 0] if strides else [])


def _refusal(ask: Runner, inputs: list[torch.Tensor]) -> str:
    try:
        with torch.inference_mode():
            ask(inputs)
    except RuntimeError as error:
        return str(error)
    return ""


def _silent(file: Path, what: str) -> ModelError:
    return ModelError(
        f"{file}: the package does not say {what}; compile it with torch 2.9 or newer, or serve "
        "the exported program itself"
    )

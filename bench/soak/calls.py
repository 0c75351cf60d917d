"""The calls of the soak, and what their ends are worth: right, refused, wrong, late or lost. Pure.

A call that was not answered is judged by the reason that the server gave: a refusal for one of the
reasons of `HONEST` is an answer too. Without any the call was lost, or late if its own deadline
ended it. Calls without a deadline show what hangs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc
import numpy as np

from bench.checked_models import Arrays, CheckedModel, differences
from headrace import InferResult, ServerError

HONEST = frozenset(
    {
        *("model_unavailable", "worker_lost", "stopping"),
        *("queue_full", "queue_timeout", "predicted_late", "overloaded", "objective_missed"),
        "deadline_exceeded",
    }
)
"""Why a server may refuse a request that is valid."""

MAX_EXAMPLES = 5
"""Of each kind of end."""


class End(Enum):
    """How a call ended."""

    RIGHT = "right"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    LATE = "late"
    WRONG = "wrong"
    HUNG = "hung"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what is sent, and the answer (`expected`) or the reasons (`refusals`) due."""

    model: str
    inputs: Arrays
    expected: Arrays | None = None
    refusals: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether an answer is due."""
        return self.expected is not None


def valid_calls(
    models: Sequence[CheckedModel], random: np.random.Generator, count: int
) -> list[Call]:
    """So many different calls of each model, in no order."""
    calls = []
    for model in models:
        for _ in range(count):
            inputs = model.draw(random)
            calls.append(Call(model.name, inputs, model.answer(inputs)))
    return calls


def bad_calls(good: Sequence[Call]) -> list[Call]:
    """One call for each thing that can be wrong, in each of the models."""
    first = {call.model: call for call in reversed(good)}
    return [
        Call(model, inputs, None, frozenset(reasons.split()), options)
        for call in first.values()
        for model, inputs, reasons, options in _spoilt(call)
    ]


def _spoilt(call: Call) -> list[tuple[str, Arrays, str, Mapping[str, Any]]]:
    (name, array), *_ = call.inputs.items()
    nothing: Mapping[str, Any] = {}
    return [
        ("nobody", call.inputs, "unknown_model", nothing),
        (call.model, call.inputs, "unknown_version", {"version": "99"}),
        (call.model, {"no such input": array}, "unknown_input", nothing),
        (call.model, {}, "wrong_input_count", nothing),
        (call.model, {name: array.astype(np.float64)}, "wrong_datatype", nothing),
        (call.model, {name: array[..., None]}, "wrong_shape", nothing),
        (call.model, {name: array[:0]}, "wrong_shape", nothing),
        (call.model, {name: np.repeat(array[:1], 65, axis=0)}, "batch_too_large", nothing),
        (call.model, call.inputs, "unknown_output", {"outputs": ["no such output"]}),
        (call.model, call.inputs, "invalid_parameter", {"parameters": {"priority": -1}}),
        (call.model, call.inputs, "invalid_parameter", {"parameters": {"triton_secret": 1}}),
    ]


def judge_answer(call: Call, request_id: str, result: InferResult) -> tuple[End, str]:
    """How a call ended that was answered."""
    if call.expected is None:
        return End.WRONG, f"expected a refusal as {sorted(call.refusals)}, got an answer"
    if (result.model_name, result.request_id) != (call.model, request_id):
        return End.WRONG, f"the answer is for {result.request_id!r} of '{result.model_name}'"
    problem = differences(result.outputs, call.expected)
    return (End.WRONG, problem) if problem else (End.RIGHT, "")


def judge_error(call: Call, error: Exception) -> tuple[End, str]:
    """How a call ended that was not answered, and whom nobody cancelled."""
    if not isinstance(error, ServerError):
        return End.LOST, repr(error)
    if error.reason is None:
        late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return (End.LATE if late else End.LOST), str(error)
    if error.reason in HONEST:
        return End.REFUSED, error.reason
    if call.valid:
        return End.LOST, str(error)
    if error.reason in call.refusals:
        return End.RIGHT, ""
    return End.WRONG, f"expected a refusal as {sorted(call.refusals)}, got {error.reason}"


class Tally:
    """Counts how calls ended; keeps the first of the bad ones in words.

    `latencies_s`: of the calls that were answered, from when they were due. `lag_s`: the most by
    which a call was sent late. In seconds.
    """

    def __init__(self) -> None:
        self.valid: Counter[End] = Counter()
        self.bad: Counter[End] = Counter()
        self.refusals: Counter[str] = Counter()
        self._examples: dict[End, list[str]] = defaultdict(list)
        self.latencies_s: list[float] = []
        self.lag_s = 0.0

    def count(self, call: Call, end: End, detail: str) -> None:
        """Count one call."""
        (self.valid if call.valid else self.bad)[end] += 1
        if end is End.REFUSED:
            self.refusals[f"{call.model}: {detail}"] += 1
        elif detail and len(self._examples[end]) < MAX_EXAMPLES:
            kind = "valid" if call.valid else "bad"
            text = f"{end.value}: a {kind} request for '{call.model}': {detail}"
            self._examples[end].append(text)

    def total(self, end: End) -> int:
        """Calls that ended like this, valid or not."""
        return self.valid[end] + self.bad[end]

    @property
    def examples(self) -> list[str]:
        """The first calls of each kind that did not end well."""
        return [text for texts in self._examples.values() for text in texts]

    @property
    def success(self) -> float:
        """Share of right answers among the valid calls that nobody cancelled."""
        wanted = sum(self.valid.values()) - self.valid[End.CANCELLED]
        return self.valid[End.RIGHT] / wanted if wanted else 1.0

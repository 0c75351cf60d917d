"""What a transport asks of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace_server.core.errors import ServingError
from headrace_server.workers.executor import BatchTiming, RequestTensors
from headrace_server.workers.regions import Span


@dataclass(slots=True, eq=False)
class Call:
    """One valid inference call.

    Args:
        tensors: its contents.
        nbytes: bytes of all inputs.
        priority: level asked for; 0 means the model's default, as does a level out of range.
        timeout_s: the `timeout` parameter: how long the caller lets it queue; None when not given.
        remaining_s: what is left until the transport's own deadline; None when there is none.
        arrived_s: moment of arrival on the engine's clock, if that was before now.
        wanted: positions in the spec of the outputs asked for, in that order; None for all.
        tenant: on whose behalf; empty where callers are not told apart.
        weight: of that tenant beside others, above 0.
    """

    tensors: RequestTensors
    nbytes: int
    priority: int = 0
    timeout_s: float | None = None
    remaining_s: float | None = None
    arrived_s: float | None = None
    wanted: tuple[int, ...] | None = None
    tenant: str = ""
    weight: float = 1.0


@dataclass(slots=True, eq=False)
class AnswerTensor:
    """One output of one request: its full shape and its raw contents.

    Contents that were written to where the caller shares memory (`span`) are not here as well.
    """

    shape: tuple[int, ...]
    data: bytes
    span: Span | None = None


@dataclass(slots=True, eq=False)
class Answer:
    """The outputs that a request wanted, in that order, and how its batch went."""

    outputs: Sequence[AnswerTensor]
    batch_rows: int
    queue_s: float
    timing: BatchTiming


class Waiter(Protocol):
    """Who waits for a call to end.

    Told exactly one of the two, unless the call is cancelled first; never while it is being
    submitted, and never while the engine decides.
    """

    def answered(self, answer: Answer) -> None:
        """The model has answered."""
        ...

    def refused(self, error: ServingError) -> None:
        """It ends without an answer."""
        ...

"""What the scheduler knows of a request and of a batch: sizes and moments, never contents."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter

from headrace_server.core.errors import Reason

Place = tuple[int, float, int]
"""Where a request stands in a queue: its level, the moment that counts there, and its id: unique,
and arrivals of one moment keep their order."""

NOWHERE: Place = (-1, -math.inf, -1)
"""The place of a request that does not wait."""

_DEADLINE_S = attrgetter("deadline_s")
_LENGTH = attrgetter("length")
_NBYTES = attrgetter("nbytes")


@dataclass(slots=True, eq=False)
class Request:
    """One call's inputs for one model, as the scheduler sees it.

    Args:
        id: unique among the live requests of one scheduler.
        key: what requests must share to ride in one batch.
        rows: length of the batch dimension, at least 1.
        nbytes: bytes of all inputs, what the request costs in queue memory.
        length: elements along the dynamic dimensions of one row; what padding and cost depend on.
            0 when every dimension is fixed.
        arrival_s: moment of arrival on the engine's clock.
        deadline_s: absolute moment by which the answer must have left; infinite when none.
        late_reason: what the client is told when the deadline passes in the queue.
        delay_when_late: a request past its deadline goes behind all others of its level instead of
            being refused (Triton's queue policy DELAY).
        priority: level, 1 is the most urgent.
        tenant: on whose behalf; empty where nobody tells callers apart.
        weight: of that tenant beside others, above 0.

    Where it stands in the queue, `place`, is the queue's alone to say. `joined_s` is the moment at
    which the scheduler was told of it, later than `arrival_s` where it was prepared first. `failed`
    is why it ends without its answer though its batch has one.
    """

    id: int
    key: Hashable
    rows: int
    nbytes: int
    arrival_s: float
    deadline_s: float = math.inf
    late_reason: Reason = Reason.DEADLINE_EXCEEDED
    delay_when_late: bool = False
    priority: int = 1
    attempts: int = field(default=0, init=False)
    cancelled: bool = field(default=False, init=False)
    failed: Reason | None = field(default=None, init=False)
    place: Place = field(default=NOWHERE, init=False)
    joined_s: float = field(default=-math.inf, init=False)
    length: int = field(default=0, kw_only=True)
    tenant: str = field(default="", kw_only=True)
    weight: float = field(default=1.0, kw_only=True)

    @property
    def waits(self) -> bool:
        """Whether it stands in a queue."""
        return self.place is not NOWHERE


@dataclass(frozen=True, slots=True)
class Alone:
    """The batch key of a request that rides by itself from now on; `key` is what it was before."""

    key: Hashable
    id: int


def soonest_deadline_s(requests: Iterable[Request]) -> float:
    """The first moment at which one of them is late. There is one at least."""
    soonest_s: float = min(map(_DEADLINE_S, requests))
    return soonest_s


def cost_key(request: Request) -> Hashable:
    """The batch key that its cost depends on: riding alone makes nothing cheaper."""
    key = request.key
    return key.key if isinstance(key, Alone) else key


class DispatchReason(Enum):
    """Why a batch left the queue at that moment with that size; a metric label."""

    IMMEDIATE = "immediate"
    FULL = "full"
    PREFERRED = "preferred"
    DELAY_EXPIRED = "delay_expired"
    BEST_WINDOW = "best_window"
    BEST_SIZE = "best_size"
    LAST_MOMENT = "last_moment"
    IN_TIME = "in_time"


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that run in one forward pass on one worker.

    `started_s` is the moment from which the worker was free to run it: its dispatch on an idle
    worker, the completion of the batch before it on a busy one. `expected_s` is how long it was
    last expected to run, in seconds, if anything was known: when it was dispatched, and again
    when it started. `running`: workers that ran at that moment, its own included. `handed_over_s`:
    seconds that it took the process to put its inputs where the worker reads them. `ran_s`: how
    long it ran, in seconds, once it was answered; what `expected_s` was about.
    """

    id: int
    worker_id: int
    requests: list[Request]
    rows: int
    reason: DispatchReason
    dispatched_s: float
    started_s: float = math.nan
    expected_s: float | None = None
    running: int = 1
    handed_over_s: float = 0.0
    ran_s: float = math.nan
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = max(map(_LENGTH, self.requests), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs, padding left out."""
        return sum(map(_NBYTES, self.requests))

    @property
    def padded_nbytes(self) -> int:
        """Bytes of all inputs when every row is as wide as the widest."""
        widest = max(request.nbytes / request.rows for request in self.requests)
        return math.ceil(self.rows * widest)

    @property
    def padding_share(self) -> float:
        """The part of the batch's elements, 0 to 1, that no request asked for."""
        if self.length == 0:
            return 0.0
        asked = sum(request.rows * request.length for request in self.requests)
        return 1.0 - asked / (self.rows * self.length)

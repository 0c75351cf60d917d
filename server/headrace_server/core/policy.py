"""When a batch leaves the queue and who rides in it: the interface, and the static rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from headrace_server.core.cost import CostModel, Sample
from headrace_server.core.errors import Reason
from headrace_server.core.explanation import Explanation
from headrace_server.core.memory import MemoryBudget
from headrace_server.core.queue import Group, Queue, Urgency, by_level_and_arrival
from headrace_server.core.request import Batch, DispatchReason, Request


@dataclass(slots=True)
class Opening:
    """Room for one more batch on one of the live workers.

    Args:
        now: the moment of the decision.
        free_s: for every live worker, the moment at which it could begin a batch more, ascending;
            `now` where a worker is idle or nothing is known of what it runs. At least one.
        running: how many workers will run at once when this batch does, its own included.
        idle: whether the process has nothing else to do, so that no request is about to come.
    """

    now: float
    free_s: Sequence[float]
    running: int = 1
    idle: bool = False

    @property
    def start_s(self) -> float:
        """When the batch that is decided about would begin."""
        return self.free_s[0]


@dataclass(slots=True)
class Formation:
    """Requests to run together now. `complete`: waiting longer could not make it larger."""

    requests: list[Request]
    rows: int
    reason: DispatchReason
    complete: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Do not dispatch before this moment, unless something else happens first.

    `or_idle`: nor while the process has other things to do, requests that are about to come among
    them.
    """

    until_s: float
    or_idle: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """This request shall leave without an answer; then ask again."""

    request: Request
    reason: Reason


Decision = Formation | Hold | Refusal

OTHER_GROUPS = 16
"""Groups of other keys that are examined while the anchor's is held."""


def form_any(
    queue: Queue, form: Callable[[Group, Opening], Decision], opening: Opening
) -> Decision:
    """What the group of the most urgent request decides; while it is held, whatever a group of
    another key is ready for: one odd shape delays nobody."""
    anchor = queue.group(queue.most_urgent().key)
    decision = form(anchor, opening)
    if isinstance(decision, Hold):
        for group in islice(queue.groups(), OTHER_GROUPS):
            if group is anchor:
                continue
            other = form(group, opening)
            if not isinstance(other, Hold):
                return other
            # The anchor is the most urgent, not always the one that may go first.
            if other.until_s < decision.until_s:
                decision = other
    return decision


class BatchPolicy(Protocol):
    """Decides from the queue and the workers' free moments; the scheduler carries decisions out.

    `form` must be free of side effects: the scheduler asks again whenever something changed.
    """

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch it ever forms, unless a single request has more."""
        ...

    def urgency(self, request: Request) -> Urgency:
        """Where the request stands in the queue; never changes while it waits."""
        ...

    def work_s(self, request: Request) -> float:
        """What the request costs its tenant: seconds that it would take alone, above 0."""
        ...

    def arrived(self, request: Request, now: float) -> None:
        """A request asks to be admitted; it may still be refused."""
        ...

    def too_late(self, request: Request, opening: Opening) -> bool:
        """Whether the request would miss its deadline even if it rode alone in that opening."""
        ...

    def form(self, queue: Queue, opening: Opening) -> Decision:
        """What should run next. The queue is not empty."""
        ...

    def durations_s(self, batch: Batch) -> tuple[float | None, float | None]:
        """How long this batch will probably run, and what it takes at most, 19 times out of 20.

        None when nothing is known; the first one also when it shall not count when batches are
        formed.
        """
        ...

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Learn from a completed batch."""
        ...

    def out_of_memory(self, batch: Batch, now: float) -> None:
        """The device had no memory for this batch: form smaller ones."""
        ...

    def explain(self, lengths: Sequence[int]) -> Explanation | None:
        """What it expects of batches padded to these lengths; None where it expects nothing,
        because fixed rules decide."""
        ...


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """Triton's `dynamic_batching` block, with its meaning.

    Empty `preferred_sizes` means `max_batch_size` alone is preferred. `max_delay_s` bounds the
    time that the oldest request waits for company; 0 never waits. `max_batch_bytes` bounds the
    memory of one batch (a single larger request still rides, alone).
    """

    max_batch_size: int
    preferred_sizes: Sequence[int] = ()
    max_delay_s: float = 0.0
    max_batch_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {self.max_batch_size}")
        beyond = [size for size in self.preferred_sizes if not 1 <= size <= self.max_batch_size]
        if beyond:
            raise ValueError(
                f"preferred sizes must be within 1 and {self.max_batch_size}, got {beyond}"
            )


class StaticPolicy:
    """First come, first served within the anchor's batch key, by fixed rules.

    The most urgent request anchors the batch and others of its key join in order, never split.
    Once the oldest of them has waited `max_delay_s`, everything collected goes. Before that, the
    largest preferred size that can be reached exactly wins, or whatever there is when nothing
    more would fit.

    What batches cost is learned all the same, from the `sweep` on, but only to tell a worker that
    is slow from one that hangs.
    """

    def __init__(self, settings: StaticSettings, sweep: Iterable[Sample] = ()) -> None:
        self._cost = CostModel(sweep)
        self._max_rows = settings.max_batch_size
        self._memory = MemoryBudget(settings.max_batch_bytes)
        self._max_delay_s = settings.max_delay_s
        self._preferred = frozenset(settings.preferred_sizes or (settings.max_batch_size,))
        self._largest_preferred = max(self._preferred)

    @property
    def most_rows(self) -> int:
        """See `BatchPolicy.most_rows`."""
        return self._max_rows

    def urgency(self, request: Request) -> Urgency:
        """See `BatchPolicy.urgency`: strict levels, first come first served."""
        return by_level_and_arrival(request)

    def work_s(self, request: Request) -> float:
        """See `BatchPolicy.work_s`."""
        return self._cost.work_s(request)

    def arrived(self, request: Request, now: float) -> None:
        """Learns nothing."""

    def too_late(self, request: Request, opening: Opening) -> bool:
        """Predicts nothing: a request is late when its deadline has passed."""
        return False

    def form(self, queue: Queue, opening: Opening) -> Decision:
        """See `BatchPolicy.form`. Looks at no more than `1 + OTHER_GROUPS` groups, and in each at
        no more requests than one batch holds."""
        return form_any(queue, self._form_group, opening)

    def _form_group(self, group: Group, opening: Opening) -> Formation | Hold:
        members: list[Request] = []
        max_bytes = self._memory.max_bytes
        rows = preferred_rows = preferred_count = 0
        row_nbytes = 0.0
        complete = False
        for request in group.requests:
            grown = rows + request.rows
            largest_nbytes = max(row_nbytes, request.nbytes / request.rows)
            if members and (grown > self._max_rows or grown * largest_nbytes > max_bytes):
                complete = True
                break
            members.append(request)
            rows, row_nbytes = grown, largest_nbytes
            if rows in self._preferred:
                preferred_rows, preferred_count = rows, len(members)
            if rows >= self._max_rows:
                complete = True
                break
        if preferred_rows >= self._max_rows or (complete and not preferred_count):
            return Formation(members, rows, DispatchReason.FULL, complete)
        due_s = math.inf
        if self._max_delay_s > 0:
            due_s = min(member.arrival_s for member in members) + self._max_delay_s
        if opening.now >= due_s:
            return Formation(members, rows, DispatchReason.DELAY_EXPIRED, complete)
        if preferred_count:
            largest = preferred_rows == self._largest_preferred
            chosen = members[:preferred_count]
            return Formation(chosen, preferred_rows, DispatchReason.PREFERRED, complete or largest)
        if due_s < math.inf:
            return Hold(due_s)
        return Formation(members, rows, DispatchReason.IMMEDIATE, complete)

    def durations_s(self, batch: Batch) -> tuple[None, float | None]:
        """See `BatchPolicy.durations_s`. Nothing is expected: fixed rules go by no costs. So a
        batch that could still grow is never bound before a worker is idle, as in Triton."""
        expected_s = self._cost.duration_s(batch)
        return None, None if expected_s is None else expected_s * self._cost.margin

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Take the batch into the cost model."""
        self._cost.observe_batch(batch, duration_s)
        self._memory.held(batch.started_s + duration_s)

    def out_of_memory(self, batch: Batch, now: float) -> None:
        """See `BatchPolicy.out_of_memory`."""
        self._memory.out_of_memory(batch, now)

    def explain(self, lengths: Sequence[int]) -> None:
        """Nothing: its rules are all there is to say."""

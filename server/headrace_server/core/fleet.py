"""The workers of one model as the scheduler sees them: what each one runs and holds staged."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from headrace_server.core.request import Batch

STAGES = 2
"""Batches that a worker may hold: one runs while the next one is staged in its other slab."""

MAX_STAGE_LEAD_S = 0.002
MIN_STAGE_LEAD_S = 0.0002
STAGE_LEAD_SHARE = 0.04
"""How long before the expected end of a running batch its successor is staged: long enough to copy
the inputs and to absorb the 1 ms grain of asyncio's timers. Earlier would close the batch to
requests that still arrive: with a tenth of the batch a quarter more deadlines are
missed near capacity (`make bench-sim`; 12 ms batches, one worker). Behind a batch of less than
5 ms nothing is staged that could still grow: closing it early costs more than the gap between two
batches."""

WAY_S = 0.001
"""What a batch and its answer may take there and back, once its inputs are where the worker reads
them; half of it is usual. What is longer is a process that is busy with other things and reads the
answer late: no batch takes longer for that."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker. Its first batch runs, the others are staged, in the order of their dispatch.

    `expected_end_s`: when the running batch will probably complete; infinite when unknown.
    `stage_from_s`: from when on its successor may be staged though it could still grow.
    `hung_from_s`: when the running batch will count as a hang.
    """

    id: int
    batches: deque[Batch] = field(default_factory=deque)
    expected_end_s: float = math.inf
    stage_from_s: float = math.inf
    hung_from_s: float = math.inf

    def free_s(self, now: float) -> float:
        """When everything it holds will probably be done; `now` when that is unknown or past."""
        if self.expected_end_s == math.inf:  # idle, or unknown
            return now
        free_s = max(now, self.expected_end_s)
        for batch in islice(self.batches, 1, None):
            free_s += batch.expected_s or 0.0
        return free_s

    def turn(self, now: float) -> tuple[bool, float, int, float]:
        """What is least for the busy worker that should take the next batch."""
        unknown = self.expected_end_s == math.inf
        return unknown, self.free_s(now), len(self.batches), self.batches[0].started_s


class Fleet:
    """Live workers by id. With `in_order`, all batches in flight are on one worker.

    A worker runs its batches in order, so with `in_order` answers come in the order of dispatch
    (Triton's `preserve_ordering`). One that was dismissed takes no more batches.
    """

    def __init__(self, *, in_order: bool = False) -> None:
        self._in_order = in_order
        self._workers: dict[int, Worker] = {}
        self._taking: dict[int, Worker] = {}
        self._idle: dict[int, Worker] = {}
        self._in_flight = 0
        self.next_hang_s = math.inf
        """When the first running batch will count as a hang. To be read only."""

    def __contains__(self, worker_id: object) -> bool:
        return worker_id in self._workers

    @property
    def in_flight(self) -> int:
        """Batches dispatched and not answered."""
        return self._in_flight

    @property
    def empty(self) -> bool:
        """Whether no worker lives."""
        return not self._workers

    def overdue(self, now: float) -> list[Worker]:
        """Workers whose running batch counts as a hang."""
        if now < self.next_hang_s:
            return []
        return [worker for worker in self._workers.values() if worker.hung_from_s <= now]

    def add(self, worker_id: int) -> None:
        """A worker starts to take batches."""
        if worker_id in self._workers:
            raise ValueError(f"worker {worker_id} is already in the fleet")
        worker = Worker(worker_id)
        self._workers[worker_id] = self._taking[worker_id] = self._idle[worker_id] = worker

    def remove(self, worker_id: int) -> list[Batch]:
        """A worker is gone; returns what it held, the running batch first."""
        worker = self._workers.pop(worker_id)
        self._taking.pop(worker_id, None)
        self._idle.pop(worker_id, None)
        self._in_flight -= len(worker.batches)
        self.bear_with(worker, math.inf)
        return list(worker.batches)

    def dismiss(self, worker_id: int) -> None:
        """A worker gets no more batches."""
        self._taking.pop(worker_id, None)
        self._idle.pop(worker_id, None)

    def has_done_its_duty(self, worker_id: int) -> bool:
        """Whether a worker was dismissed and holds nothing any more."""
        return self.dismissed(worker_id) and not self._workers[worker_id].batches

    def dismissed(self, worker_id: int) -> bool:
        """Whether this worker gets no more batches."""
        return worker_id not in self._taking

    def candidate(self, now: float) -> Worker | None:
        """The worker that should take the next batch: an idle one, else the one that will be free
        first; None when that one has no room to stage. Another one would begin later, and behind
        a long batch much later than who decides about deadlines is told."""
        if self._in_order and self._in_flight:
            busy = next(w for w in self._workers.values() if w.batches)
            return busy if len(busy.batches) < STAGES and busy.id in self._taking else None
        if self._idle:
            return next(iter(self._idle.values()))
        if not self._taking:
            return None
        first = min(self._taking.values(), key=lambda worker: worker.turn(now))
        return first if len(first.batches) < STAGES else None

    def running_with(self, worker: Worker | None = None) -> int:
        """Workers that run a batch, or would if this one did; at least 1."""
        idle = len(self._idle) - (worker is not None and not worker.batches)
        return max(1, len(self._workers) - idle)

    def free_s(self, now: float) -> list[float]:
        """When each worker could begin a batch more, ascending; see `Opening`."""
        return sorted([worker.free_s(now) for worker in self._taking.values()])

    def bear_with(self, worker: Worker, until_s: float) -> None:
        """Let the running batch of this worker count as a hang from then on, not before."""
        was_first = worker.hung_from_s == self.next_hang_s
        worker.hung_from_s = until_s
        if until_s < self.next_hang_s:
            self.next_hang_s = until_s
        elif was_first:
            hangs_s = [worker.hung_from_s for worker in self._workers.values()]
            self.next_hang_s = min(hangs_s, default=math.inf)

    def assign(
        self, batch: Batch, expected_s: float | None, now: float, patience_s: float = math.inf
    ) -> None:
        """Give the batch to its worker; once it runs, `patience_s` is how long it may."""
        worker = self._workers[batch.worker_id]
        if len(worker.batches) >= STAGES:
            raise ValueError(f"worker {worker.id} already holds {STAGES} batches")
        worker.batches.append(batch)
        batch.expected_s = expected_s
        self._in_flight += 1
        if len(worker.batches) == 1:
            del self._idle[worker.id]
            self._start(worker, expected_s, now, patience_s)

    def finish(
        self, batch: Batch, now: float, least_s: float = 0.0, most_s: float = math.inf
    ) -> None:
        """A worker answered its running batch, which ran from when the worker was free for it,
        within what the worker says itself and what the way there and back may take. See
        `BatchCompleted`."""
        worker = self._workers[batch.worker_id]
        if not worker.batches or worker.batches[0] is not batch:
            raise ValueError(f"worker {worker.id} answered batch {batch.id}, which is not running")
        worker.batches.popleft()
        self._in_flight -= 1
        if not worker.batches:
            worker.expected_end_s = worker.stage_from_s = math.inf
            self.bear_with(worker, math.inf)
            if worker.id in self._taking:
                self._idle[worker.id] = worker
        seen_s = now - batch.started_s
        batch.ran_s = min(max(seen_s, least_s), most_s + batch.handed_over_s + WAY_S)

    def withdraw(self, batch: Batch) -> None:
        """A batch that was staged on its worker never runs there."""
        self._workers[batch.worker_id].batches.remove(batch)
        self._in_flight -= 1

    def running(self, worker_id: int) -> Batch | None:
        """The batch that this worker runs, if any."""
        batches = self._workers[worker_id].batches
        return batches[0] if batches else None

    def begin_next(
        self, worker_id: int, expected_s: float | None, now: float, patience_s: float = math.inf
    ) -> None:
        """The batch that was staged on this worker runs from now on."""
        self._start(self._workers[worker_id], expected_s, now, patience_s)

    def batches(self) -> list[Batch]:
        """Everything in flight."""
        return [batch for worker in self._workers.values() for batch in worker.batches]

    def check_invariants(self) -> None:
        """Raise AssertionError when the books disagree."""
        assert self._in_flight == len(self.batches()), "batches in flight are miscounted"
        for worker in self._workers.values():
            assert len(worker.batches) <= STAGES, "a worker holds too many batches"
            idle = not worker.batches and worker.id in self._taking
            assert (worker.id in self._idle) == idle, "idle workers are misfiled"
        hangs_s = [worker.hung_from_s for worker in self._workers.values()]
        assert self.next_hang_s == min(hangs_s, default=math.inf), "the next hang is misdated"
        busy = [worker for worker in self._workers.values() if worker.batches]
        assert not self._in_order or len(busy) <= 1, "ordered batches are on several workers"

    def _start(
        self, worker: Worker, expected_s: float | None, now: float, patience_s: float
    ) -> None:
        self.bear_with(worker, now + patience_s)
        worker.batches[0].started_s = now
        worker.batches[0].expected_s = expected_s
        if expected_s is None:
            worker.expected_end_s = worker.stage_from_s = math.inf
        else:
            worker.expected_end_s = now + expected_s
            lead_s = min(MAX_STAGE_LEAD_S, expected_s * STAGE_LEAD_SHARE)
            if lead_s >= MIN_STAGE_LEAD_S:
                worker.stage_from_s = worker.expected_end_s - lead_s
            else:
                worker.stage_from_s = math.inf

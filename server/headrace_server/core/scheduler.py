"""The scheduler of one model: events in, actions out.

Rules of this file:
- `handle(event, now)` is the only way in; its return value, `next_wakeup()` and `awaits_idle` are
  the only ways out.
- It never waits, reads a clock or fails on what the outside world does: news of a batch or a
  worker that is no longer its own is ignored. `now` never goes back.
- Every request that was submitted leaves exactly once: in a completed batch, in a `Reject`, or
  because its caller cancelled it.
- A worker that does not answer in time, and a model whose workers are lost for too long, make
  nobody wait for ever.
- A batch is bound as late as possible: when a worker is idle, or is about to be, or when waiting
  could not make it larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from headrace_server.core.errors import Reason
from headrace_server.core.events import (
    Action,
    BatchCompleted,
    BatchFailed,
    Dispatch,
    Drained,
    DrainStarted,
    Event,
    ProcessIdle,
    Reject,
    Release,
    RequestCancelled,
    RequestSubmitted,
    Restart,
    ServiceAbandoned,
    TimeAdvanced,
    WorkerDismissed,
    WorkerLost,
    WorkerReady,
)
from headrace_server.core.explanation import Explanation
from headrace_server.core.fairness import FairQueue
from headrace_server.core.fleet import Fleet, Worker
from headrace_server.core.outage import Outage
from headrace_server.core.policy import BatchPolicy, Formation, Hold, Opening, Refusal
from headrace_server.core.queue import QueueLimits
from headrace_server.core.request import Alone, Batch, Request
from headrace_server.core.watchdog import LATE_S, LEAST_S, Watchdog

MAX_ATTEMPTS = 2
"""Times that a request may be running when its worker is lost, before it is given up."""

MOST_REFUSALS = 16
"""Of one decision: each may be a search of its own, and other models share the event loop."""


class Scheduler:
    """Decides who waits, who rides and who is refused, for one model on any number of workers."""

    def __init__(
        self,
        policy: BatchPolicy,
        limits: QueueLimits | None = None,
        *,
        preserve_ordering: bool = False,
        watchdog: Watchdog | None = None,
        outage: Outage | None = None,
    ) -> None:
        self._policy = policy
        # Two batches of each tenant leave a policy its choice of neighbours in length.
        self._queue = FairQueue(
            limits or QueueLimits(), policy.urgency, policy.work_s, 2 * policy.most_rows
        )
        self._fleet = Fleet(in_order=preserve_ordering)
        self._watchdog = watchdog or Watchdog()
        self._outage = outage or Outage()
        self._live: dict[int, Request] = {}
        self._batches: dict[int, Batch] = {}
        self._next_batch_id = 0
        self._rows_considered = 0
        self._decide_at_s = math.inf
        self._awaits_idle = False
        self._closed_for: Reason | None = None
        self._drained = False
        self._transitions: dict[type, Callable[[Any, float], list[Action]]] = {
            RequestSubmitted: self._on_request_submitted,
            RequestCancelled: self._on_request_cancelled,
            WorkerReady: self._on_worker_ready,
            WorkerLost: self._on_worker_lost,
            WorkerDismissed: self._on_worker_dismissed,
            BatchCompleted: self._on_batch_completed,
            BatchFailed: self._on_batch_failed,
            TimeAdvanced: self._on_time_advanced,
            ProcessIdle: self._on_process_idle,
            DrainStarted: self._on_drain_started,
            ServiceAbandoned: self._on_service_abandoned,
        }

    @property
    def queue(self) -> FairQueue:
        """The waiting requests, to be read only."""
        return self._queue

    @property
    def batches_in_flight(self) -> int:
        """Batches dispatched and not answered."""
        return self._fleet.in_flight

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; returns the actions to perform, in order."""
        return self._transitions[type(event)](event, now)

    def next_wakeup(self) -> float | None:
        """When `TimeAdvanced` is due, if nothing else happens first; None for never.

        A moment that has already come means: as soon as the events at hand are handled.
        """
        queue = self._queue
        wakeup = min(self._decide_at_s, self._fleet.next_hang_s, queue.next_deadline_s())
        if wakeup > self._outage.due_s and queue.rows:
            wakeup = self._outage.due_s
        return None if wakeup == math.inf else wakeup

    @property
    def awaits_idle(self) -> bool:
        """Whether `ProcessIdle` would be news."""
        return self._awaits_idle

    def explain(self, lengths: Sequence[int]) -> Explanation | None:
        """What its policy goes by; see `BatchPolicy.explain`."""
        return self._policy.explain(lengths)

    def check_invariants(self) -> None:
        """Raise AssertionError when the scheduler's books disagree. For tests."""
        self._queue.check_invariants()
        self._fleet.check_invariants()
        in_flight = self._fleet.batches()
        assert {b.id for b in in_flight} == set(self._batches), "batches are misfiled"
        riding = [r.id for b in in_flight for r in b.requests]
        waiting = [r.id for r in self._queue]
        assert len(set(riding + waiting)) == len(riding) + len(waiting), "a request is twice"
        assert set(riding + waiting) == set(self._live), "a request is lost"
        assert all(b.rows == sum(r.rows for r in b.requests) for b in in_flight)
        assert all(len({r.key for r in b.requests}) == 1 for b in in_flight), "keys are mixed"
        assert not self._drained or not self._live, "drained with work left"

    # -- transitions ------------------------------------------------------------------------

    def _on_request_submitted(self, event: RequestSubmitted, now: float) -> list[Action]:
        request = event.request
        if self._closed_for is not None:
            return [Reject(request, self._closed_for)]
        if now >= self._outage.due_s:
            return [Reject(request, Reason.MODEL_UNAVAILABLE)]
        request.joined_s = now
        self._policy.arrived(request, now)
        if request.deadline_s <= now and not request.delay_when_late:
            return [Reject(request, request.late_reason)]
        if request.deadline_s < math.inf:
            opening = Opening(now, self._fleet.free_s(now) or [now], self._fleet.running_with())
            if self._policy.too_late(request, opening):
                return [Reject(request, Reason.PREDICTED_LATE)]
        actions: list[Action] = []
        if not self._queue.has_room_for(request):
            displaced = self._queue.displace_for(request)
            actions += [self._reject(other, Reason.QUEUE_FULL) for other in displaced]
            if not actions:
                return [Reject(request, Reason.QUEUE_FULL)]
        self._live[request.id] = request
        self._queue.push(request)
        if self._decide_at_s <= now:
            return actions
        worker = self._fleet.candidate(now)
        if worker is None:
            return actions
        grown = self._queue.rows - self._rows_considered
        if not worker.batches or grown >= self._policy.most_rows:
            self._decide_at_s = now
        else:
            # It could only be staged, and not yet: no need to think before that moment.
            self._decide_at_s = min(self._decide_at_s, max(now, worker.stage_from_s))
        return actions

    def _on_request_cancelled(self, event: RequestCancelled, now: float) -> list[Action]:
        request = self._live.get(event.request_id)
        if request is None:
            return []
        request.cancelled = True
        if request.waits:
            self._queue.remove(request)
            del self._live[request.id]
        if self._awaits_idle or self._decide_at_s < math.inf:
            return self._decide_soon(now)  # without it, what is held may fit a size that is wanted
        return self._drained_now()

    def _on_worker_ready(self, event: WorkerReady, now: float) -> list[Action]:
        if self._fleet.empty:
            self._outage.first_worker_ready(now)
        self._fleet.add(event.worker_id)
        return self._decide(now)

    def _on_worker_lost(self, event: WorkerLost, now: float) -> list[Action]:
        if event.worker_id not in self._fleet:
            return []
        return self._lose(event.worker_id, now) + self._decide(now)

    def _on_worker_dismissed(self, event: WorkerDismissed, now: float) -> list[Action]:
        if event.worker_id not in self._fleet:
            return [Release(event.worker_id)]
        self._fleet.dismiss(event.worker_id)
        # Who rode alone in order, or waited for this worker, may now go elsewhere.
        return self._let_go(event.worker_id, now) + self._decide(now)

    def _let_go(self, worker_id: int, now: float) -> list[Action]:
        """Release a worker that was dismissed, if it holds nothing any more."""
        if not self._fleet.has_done_its_duty(worker_id):
            return []
        self._remove(worker_id, now)
        return [Release(worker_id)]

    def _remove(self, worker_id: int, now: float) -> list[Batch]:
        held = self._fleet.remove(worker_id)
        if self._fleet.empty:
            self._outage.last_worker_lost(now)
        return held

    def _lose(self, worker_id: int, now: float) -> list[Action]:
        """Take back what a worker held: what it ran is tried alone, what it did not begin is as
        good as new."""
        actions: list[Action] = [Release(worker_id)] if self._fleet.dismissed(worker_id) else []
        lost = self._remove(worker_id, now)
        for batch in lost:
            del self._batches[batch.id]
        for batch in lost:
            was_running = batch is lost[0]
            for request in batch.requests:
                request.attempts += was_running
                if request.cancelled:
                    del self._live[request.id]
                elif request.attempts >= MAX_ATTEMPTS:
                    actions.append(self._reject(request, Reason.WORKER_LOST))
                elif was_running:
                    self._try_alone(request)
                else:
                    self._queue.push(request)
        return actions

    def _on_batch_completed(self, event: BatchCompleted, now: float) -> list[Action]:
        batch = self._batches.pop(event.batch_id, None)
        if batch is None:
            return []
        self._fleet.finish(batch, now, event.least_s, event.most_s)
        self._policy.observe(batch, batch.ran_s)
        self._watchdog.answered(batch)
        self._outage.answered()
        for request in batch.requests:
            del self._live[request.id]
        return self._begin_staged(batch.worker_id, now) + self._decide_soon(now)

    def _on_batch_failed(self, event: BatchFailed, now: float) -> list[Action]:
        batch = self._batches.pop(event.batch_id, None)
        if batch is None:
            return []
        # One that could not be handed to its worker fails while it is staged.
        ran = self._fleet.running(batch.worker_id) is batch
        if ran:
            self._fleet.finish(batch, now)
            self._outage.answered()
        else:
            self._fleet.withdraw(batch)
        if event.out_of_memory:
            self._policy.out_of_memory(batch, now)
        actions: list[Action] = []
        for request in batch.requests:
            if request.cancelled:
                del self._live[request.id]
            elif len(batch.requests) == 1:
                reason = Reason.OUT_OF_MEMORY if event.out_of_memory else Reason.MODEL_FAILED
                actions.append(self._reject(request, reason))
            elif event.out_of_memory and batch.padded_nbytes:
                self._queue.push(request)
            else:  # inputs without bytes say nothing of the memory that they take
                self._try_alone(request)
        if ran:
            actions += self._begin_staged(batch.worker_id, now)
        return actions + self._decide_soon(now)

    def _on_time_advanced(self, event: TimeAdvanced, now: float) -> list[Action]:
        actions: list[Action] = []
        for worker in self._fleet.overdue(now):
            if now - worker.hung_from_s > LATE_S:
                self._fleet.bear_with(worker, now + LEAST_S)
                continue
            self._watchdog.hung(worker.batches[0])
            actions += [Restart(worker.id), *self._lose(worker.id, now)]
        return actions + self._decide(now)

    def _on_process_idle(self, event: ProcessIdle, now: float) -> list[Action]:
        return self._decide(now, idle=True) if self._awaits_idle else []

    def _on_drain_started(self, event: DrainStarted, now: float) -> list[Action]:
        self._closed_for = Reason.STOPPING
        return self._decide(now)

    def _on_service_abandoned(self, event: ServiceAbandoned, now: float) -> list[Action]:
        self._closed_for = event.reason
        self._batches.clear()
        self._fleet = Fleet()
        actions: list[Action] = []
        for request in list(self._live.values()):
            if request.waits:
                self._queue.remove(request)
            actions.append(self._reject(request, event.reason))
        return actions + self._decide(now)

    # -- decisions --------------------------------------------------------------------------

    def _try_alone(self, request: Request) -> None:
        """Put a request back at its place in the queue, to ride by itself from now on.

        One of its batch may be the poison that killed the worker or failed the model: that one
        shall fail alone, and its neighbours get their answers.
        """
        request.key = Alone(request.key, request.id)
        self._queue.push(request)

    def _decide_soon(self, now: float) -> list[Action]:
        """A worker has room: decide once the events of this moment are in.

        The shell delivers what happens at one moment one by one; the requests among it, often
        sent by those who were just answered, shall ride in the next batch, not in the one after.
        """
        if self._queue.rows:
            self._decide_at_s = now
            return []
        return self._drained_now()

    def _decide(self, now: float, *, idle: bool = False) -> list[Action]:
        """Refuse what is late, dispatch what can ride, and note when to look again."""
        actions: list[Action] = []
        for request in self._queue.expire(now):
            if request.delay_when_late:
                self._queue.demote(request)
            else:
                self._queue.remove(request)
                actions.append(self._reject(request, request.late_reason))
        if now >= self._outage.due_s:
            for request in list(self._queue):
                self._queue.remove(request)
                actions.append(self._reject(request, Reason.MODEL_UNAVAILABLE))
        self._decide_at_s = math.inf
        self._awaits_idle = False
        self._rows_considered = 0
        queue, fleet = self._queue, self._fleet
        refused = 0
        while queue.rows:
            worker = fleet.candidate(now)
            if worker is None:
                break
            opening = Opening(now, fleet.free_s(now), fleet.running_with(worker), idle)
            decision = self._policy.form(queue, opening)
            if isinstance(decision, Refusal):
                queue.remove(decision.request)
                actions.append(self._reject(decision.request, decision.reason))
                refused += 1
                if refused == MOST_REFUSALS:
                    self._decide_at_s = now
                    break
                continue
            if isinstance(decision, Hold):
                self._decide_at_s = decision.until_s
                self._awaits_idle = decision.or_idle
                break
            if worker.batches and not decision.complete and now < worker.stage_from_s:
                self._decide_at_s = worker.stage_from_s
                self._rows_considered = queue.rows
                break
            actions.append(self._dispatch(decision, worker, opening))
        if self._closed_for is not None:
            actions += self._drained_now()
        return actions

    def _drained_now(self) -> list[Action]:
        """Says so, once, when no work is left and none will come."""
        if self._closed_for is None or self._drained or self._live:
            return []
        self._drained = True
        return [Drained()]

    def _dispatch(self, formation: Formation, worker: Worker, opening: Opening) -> Dispatch:
        self._queue.remove_batch(formation.requests)
        batch = Batch(
            self._next_batch_id,
            worker.id,
            formation.requests,
            formation.rows,
            formation.reason,
            dispatched_s=opening.now,
            running=opening.running,
        )
        self._next_batch_id += 1
        self._batches[batch.id] = batch
        expected_s, upper_s = self._policy.durations_s(batch)
        patience_s = self._watchdog.patience_s(batch, upper_s)
        self._fleet.assign(batch, expected_s, opening.now, patience_s)
        return Dispatch(batch)

    def _begin_staged(self, worker_id: int, now: float) -> list[Action]:
        """A worker answered: it goes on with the batch staged on it, if any, or may leave."""
        staged = self._fleet.running(worker_id)
        if staged is None:
            return self._let_go(worker_id, now)
        staged.running = self._fleet.running_with()
        expected_s, upper_s = self._policy.durations_s(staged)
        patience_s = self._watchdog.patience_s(staged, upper_s)
        self._fleet.begin_next(worker_id, expected_s, now, patience_s)
        return []

    def _reject(self, request: Request, reason: Reason) -> Reject:
        del self._live[request.id]
        return Reject(request, reason)

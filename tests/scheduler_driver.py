"""Drives a scheduler by hand, as the engine would: wakes it when it asks, and keeps the score."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

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
from headrace_server.core.outage import Outage
from headrace_server.core.policy import BatchPolicy, StaticPolicy, StaticSettings
from headrace_server.core.queue import QueueLimits
from headrace_server.core.request import Batch, Request
from headrace_server.core.scheduler import Scheduler
from headrace_server.core.watchdog import Watchdog


def make_request(
    request_id: int,
    *,
    rows: int = 1,
    key: Hashable = "a",
    nbytes: int = 4,
    at: float = 0.0,
    deadline_s: float = math.inf,
    late_reason: Reason = Reason.DEADLINE_EXCEEDED,
    delay: bool = False,
    priority: int = 1,
    length: int = 0,
    tenant: str = "",
    weight: float = 1.0,
) -> Request:
    """A request with whatever the test does not care about filled in."""
    return Request(
        request_id,
        key,
        rows,
        nbytes,
        at,
        deadline_s,
        late_reason,
        delay,
        priority,
        length=length,
        tenant=tenant,
        weight=weight,
    )


class SchedulerDriver:
    """One scheduler with its time, its workers' batches and the fate of every request.

    Every method is one event at `now`; it returns the actions, checks the scheduler's invariants
    and books the outcome. `settle` and `advance_to` send the wake-ups that are due.
    Without a `policy`, the static one follows the settings given. `outcomes` says how each request
    left: "completed", "cancelled", or the reason of its refusal. `restarted` lists the workers that
    were to be ended because they hang; each is gone until it is added again. `released` lists those
    that were dismissed and are to end.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        policy: BatchPolicy | None = None,
        max_batch_size: int = 8,
        preferred_sizes: Sequence[int] = (),
        max_delay_s: float = 0.0,
        max_batch_bytes: int = 1 << 28,
        limits: QueueLimits | None = None,
        preserve_ordering: bool = False,
        watchdog: Watchdog | None = None,
        outage: Outage | None = None,
    ) -> None:
        settings = StaticSettings(max_batch_size, preferred_sizes, max_delay_s, max_batch_bytes)
        self.scheduler = Scheduler(
            policy or StaticPolicy(settings),
            limits,
            preserve_ordering=preserve_ordering,
            watchdog=watchdog,
            outage=outage,
        )
        self.now = 0.0
        self.requests: dict[int, Request] = {}
        self.in_flight: dict[int, Batch] = {}
        self.outcomes: dict[int, str | Reason] = {}
        self.dispatched: list[Batch] = []
        self.restarted: list[int] = []
        self.released: list[int] = []
        self.drained = 0
        for worker in range(workers):
            self.add_worker(worker)

    # -- events -----------------------------------------------------------------------------

    def submit(
        self,
        request_id: int | None = None,
        *,
        rows: int = 1,
        key: Hashable = "a",
        nbytes: int = 4,
        deadline_s: float = math.inf,
        late_reason: Reason = Reason.DEADLINE_EXCEEDED,
        delay: bool = False,
        priority: int = 1,
        length: int = 0,
        tenant: str = "",
        weight: float = 1.0,
    ) -> list[Action]:
        """Submit one request now; ids count from 1 when none is given."""
        request = make_request(
            len(self.requests) + 1 if request_id is None else request_id,
            rows=rows,
            key=key,
            nbytes=nbytes,
            at=self.now,
            deadline_s=deadline_s,
            late_reason=late_reason,
            delay=delay,
            priority=priority,
            length=length,
            tenant=tenant,
            weight=weight,
        )
        assert request.id not in self.requests, f"request {request.id} is submitted twice"
        self.requests[request.id] = request
        return self.handle(RequestSubmitted(request))

    def cancel(self, request_id: int) -> list[Action]:
        """A caller goes, and nothing else happens at this moment."""
        return self.handle(RequestCancelled(request_id)) + self.settle()

    def add_worker(self, worker_id: int) -> list[Action]:
        return self.handle(WorkerReady(worker_id))

    def lose_worker(self, worker_id: int) -> list[Action]:
        return self.handle(WorkerLost(worker_id))

    def dismiss_worker(self, worker_id: int) -> list[Action]:
        return self.handle(WorkerDismissed(worker_id))

    def complete(self, batch_id: int) -> list[Action]:
        """The worker answers, and nothing else happens at this moment."""
        return self.handle(BatchCompleted(batch_id)) + self.settle()

    def fail(self, batch_id: int) -> list[Action]:
        """The model fails on the batch, and nothing else happens at this moment."""
        return self.handle(BatchFailed(batch_id)) + self.settle()

    def run_out_of_memory(self, batch_id: int) -> list[Action]:
        """The device has no memory for the batch, and nothing else happens at this moment."""
        return self.handle(BatchFailed(batch_id, out_of_memory=True)) + self.settle()

    def idle(self) -> list[Action]:
        """The process has nothing else to do."""
        return self.handle(ProcessIdle())

    def drain(self) -> list[Action]:
        return self.handle(DrainStarted())

    def abandon(self, reason: Reason = Reason.STOPPING) -> list[Action]:
        return self.handle(ServiceAbandoned(reason))

    def settle(self) -> list[Action]:
        """Send the wake-up that is due now, if any."""
        return self.advance_to(self.now)

    def advance_to(self, moment_s: float) -> list[Action]:
        """Let time pass up to `moment_s`, waking the scheduler whenever it asks to be."""
        actions: list[Action] = []
        while (wakeup_s := self.scheduler.next_wakeup()) is not None and wakeup_s <= moment_s:
            self.now = max(self.now, wakeup_s)
            done = self.handle(TimeAdvanced())
            actions += done
            again_s = self.scheduler.next_wakeup()
            moved_on = done or again_s is None or again_s > self.now
            assert moved_on, "asks for the same moment again and again"
        self.now = moment_s
        return actions

    # -- what the test reads ----------------------------------------------------------------

    @property
    def waiting(self) -> list[int]:
        """Ids of the waiting requests, the most urgent first."""
        return [request.id for request in self.scheduler.queue]

    def running(self, worker_id: int) -> list[int]:
        """Ids of the batches on this worker, the running one first."""
        return [batch.id for batch in self.in_flight.values() if batch.worker_id == worker_id]

    # -- the score --------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        self._book_event(event)
        for action in actions:
            self._book_action(action)
        self.check()
        return actions

    def check(self) -> None:
        """The scheduler's own books agree, and they agree with the score kept here."""
        self.scheduler.check_invariants()
        waiting = set(self.waiting)
        riding = {r.id for batch in self.in_flight.values() for r in batch.requests}
        gone = set(self.outcomes)
        assert self.scheduler.batches_in_flight == len(self.in_flight)
        assert waiting.isdisjoint(gone)
        assert waiting | riding | gone == set(self.requests), "a request is lost"

    def _book_event(self, event: Event) -> None:
        match event:
            case BatchCompleted(batch_id) if batch_id in self.in_flight:
                for request in self.in_flight.pop(batch_id).requests:
                    self._leave(request.id, "completed")
            case BatchFailed(batch_id) if batch_id in self.in_flight:
                self._give_back(batch_id)
            case WorkerLost(worker_id):
                self._give_back_all(worker_id)
            case RequestCancelled(request_id):
                riding = {r.id for batch in self.in_flight.values() for r in batch.requests}
                if request_id in self.requests and request_id not in riding | set(self.outcomes):
                    self._leave(request_id, "cancelled")
            case ServiceAbandoned():
                self.in_flight.clear()
            case _:
                pass

    def _give_back_all(self, worker_id: int) -> None:
        for batch_id in self.running(worker_id):
            self._give_back(batch_id)

    def _give_back(self, batch_id: int) -> None:
        for request in self.in_flight.pop(batch_id).requests:
            if request.cancelled:
                self._leave(request.id, "cancelled")

    def _book_action(self, action: Action) -> None:
        match action:
            case Dispatch(batch):
                assert batch.id not in self.in_flight, "a batch is dispatched twice"
                self.in_flight[batch.id] = batch
                self.dispatched.append(batch)
            case Reject(request, reason):
                self._leave(request.id, reason)
            case Restart(worker_id):
                self._give_back_all(worker_id)
                self.restarted.append(worker_id)
            case Release(worker_id):
                assert not self.running(worker_id), "a worker that holds something is ended"
                self.released.append(worker_id)
            case Drained():
                self.drained += 1

    def _leave(self, request_id: int, outcome: str | Reason) -> None:
        assert request_id not in self.outcomes, f"request {request_id} left twice"
        self.outcomes[request_id] = outcome


def dispatches(actions: Sequence[Action]) -> list[list[int]]:
    """The ids in each dispatched batch; asserts that nothing else was asked for."""
    batches = [action.batch for action in actions if isinstance(action, Dispatch)]
    assert len(batches) == len(actions), f"expected dispatches only, got {actions}"
    return [[request.id for request in batch.requests] for batch in batches]


def rejections(actions: Sequence[Action]) -> list[tuple[int, Reason]]:
    """Who was refused and why; asserts that nothing else was asked for."""
    refused = [action for action in actions if isinstance(action, Reject)]
    assert len(refused) == len(actions), f"expected rejections only, got {actions}"
    return [(action.request.id, action.reason) for action in refused]

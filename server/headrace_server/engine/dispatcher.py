"""The requests of one version of a model: its scheduler, what runs, and everyone who waits.

Performs the scheduler's actions and is the only place where waiters are told anything.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from headrace_server.core.cost import Sample
from headrace_server.core.errors import Reason, ServingError
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
from headrace_server.core.request import Batch, Request
from headrace_server.engine.calls import Answer, AnswerTensor, Call, Waiter
from headrace_server.engine.clock import Clock
from headrace_server.engine.cutting import keep, ragged_output_axes, rows_of
from headrace_server.engine.observer import Observer
from headrace_server.engine.riding import RidingRules
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.spec import ModelSpec
from headrace_server.serving_loop import Handle
from headrace_server.workers.executor import BatchOutput, BatchTiming, Executor, RequestTensors

if TYPE_CHECKING:
    from headrace_server.engine.deployment import Deployment

log = logging.getLogger("headrace.engine")


NO_WORKER = "its workers are lost again and again, the repository index says why"
"""What a caller is told who waited for one, or would have to."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request's other half: what the scheduler does not look at."""

    request: Request
    tensors: RequestTensors
    wanted: tuple[int, ...]
    waiter: Waiter


End = tuple[int, Answer | ServingError]
"""Which request ended, and how. Whoever waits for it has a ticket until he is told."""


class Dispatcher:
    """Takes calls, lets the scheduler decide about them, and has the executor run its batches.

    Args:
        deployment: whose requests these are; observers are told of it.
        spec: the signature of its model.
        rules: how its requests are scheduled.
        sweep: batches that were timed when it was loaded.
        load_s: seconds that loading it took.
    """

    def __init__(
        self,
        deployment: Deployment,
        spec: ModelSpec,
        rules: SchedulingRules,
        sweep: Sequence[Sample],
        load_s: float,
        executor: Executor,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._deployment = deployment
        self._rules = rules
        self._scheduler = rules.scheduler(sweep, load_s)
        self._riding = RidingRules(spec)
        self._cut_axes = ragged_output_axes(spec)
        self._output_names = [output.name for output in spec.outputs]
        self._all_outputs = tuple(range(len(spec.outputs)))
        self._executor = executor
        self._clock = clock
        self._observer = observer
        self._tickets: dict[int, _Ticket] = {}
        self._in_flight: dict[int, Batch] = {}
        self._ends: list[End] = []
        self._entering: int | None = None
        self._refused_at_once: list[ServingError] = []
        self._next_id = 0
        self._timer: Handle | None = None
        self._timer_at_s = math.inf
        self._waits_for_idle = False
        self._drained = asyncio.Event()

    @property
    def queued_requests(self) -> int:
        """Requests that wait."""
        return len(self._scheduler.queue)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the inputs of requests that wait."""
        return self._scheduler.queue.nbytes

    def explain(self, lengths: Sequence[int]) -> Explanation | None:
        """See `Deployment.explain`."""
        return self._scheduler.explain(lengths)

    # -- requests ---------------------------------------------------------------------------

    def submit(self, call: Call, waiter: Waiter) -> Request:
        """See `Deployment.submit`."""
        now = self._clock.now()
        most_bytes = self._rules.settings.max_batch_bytes
        # Its rows are of one length, so alone it needs no padding: these are all its bytes.
        if most_bytes is not None and call.nbytes > most_bytes:
            raise ServingError(
                Reason.REQUEST_TOO_LARGE,
                model=self._deployment.name,
                limit=most_bytes,
                got=call.nbytes,
            )
        key, length = self._riding.of(call.tensors)
        request = self._rules.request(self._next_id, key, length, call, now)
        self._next_id += 1
        # The ticket is there before the scheduler hears of the request: whatever it decides, there
        # is somebody to tell.
        wanted = self._all_outputs if call.wanted is None else call.wanted
        self._tickets[request.id] = _Ticket(request, call.tensors, wanted, waiter)
        # Whoever is told of an end meanwhile may submit something himself.
        outer, self._entering = self._entering, request.id
        self._handle(RequestSubmitted(request), now)
        inner, self._entering = self._entering, outer
        if inner is None:
            # No name for it: its traceback holds this frame, and a name would hold it.
            raise self._refused_at_once.pop()
        return request

    def cancel(self, request: Request) -> None:
        """The caller went away. Nothing happens to requests that ended already."""
        if self._tickets.pop(request.id, None) is not None:
            self._handle(RequestCancelled(request.id))
            self._observer.request_cancelled(self._deployment, request, self._clock.now())

    # -- the end ----------------------------------------------------------------------------

    async def drain(self, timeout_s: float | None) -> bool:
        """Refuse new requests and wait until the admitted ones are answered, or abandon them when
        the time is over; returns whether all were answered. None waits as long as it takes."""
        self._handle(DrainStarted())
        if self._drained.is_set():
            return True
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
        except TimeoutError:
            self.abandon()
            return False
        return True

    def abandon(self) -> None:
        """Whoever still waits gets an error, and whoever still comes."""
        self._in_flight.clear()
        self._handle(ServiceAbandoned(Reason.STOPPING))

    def close(self) -> None:
        """Nothing happens any more."""
        if self._timer is not None:
            self._timer.cancel()

    def dismiss(self, worker_id: int) -> None:
        """Let a worker finish what it holds, and end it."""
        self._handle(WorkerDismissed(worker_id))

    # -- what the executor reports ----------------------------------------------------------

    def worker_ready(self, worker_id: int) -> None:
        """See `ExecutorListener.worker_ready`."""
        self._handle(WorkerReady(worker_id))

    def worker_lost(self, worker_id: int) -> None:
        """See `ExecutorListener.worker_lost`."""
        self._take_back(worker_id)
        self._handle(WorkerLost(worker_id))

    def batch_completed(
        self, batch_id: int, outputs: Sequence[BatchOutput], timing: BatchTiming
    ) -> None:
        """See `ExecutorListener.batch_completed`."""
        batch = self._in_flight.get(batch_id)
        if batch is None:
            return
        try:
            ends = self._answers(batch, outputs, timing)
        except Exception as error:
            # Nobody has been told anything yet: a batch that cannot be cut is one that failed.
            self.batch_failed(batch_id, f"its outputs cannot be cut: {error!r}")
            return
        del self._in_flight[batch_id]
        now = self._clock.now()
        # The scheduler first: it says how long the batch ran, and the worker gets its next one.
        completed = BatchCompleted(batch_id, timing.infer_ns / 1e9, timing.compute_ns / 1e9)
        self._handle(completed, now)
        self._tell(ends)
        # Once the answers have gone, at the end of this turn too, and before any other request.
        account = partial(self._observer.batch_completed, self._deployment, batch, timing, now)
        self._clock.call_soon(account)

    def batch_failed(self, batch_id: int, detail: str, out_of_memory: bool = False) -> None:
        """See `ExecutorListener.batch_failed`."""
        self._in_flight.pop(batch_id, None)
        name, version = self._deployment.name, self._deployment.version
        # The detail may quote inputs and paths: it is for the log, never for callers.
        log.warning("model '%s' version %d failed on a batch: %s", name, version, detail)
        self._handle(BatchFailed(batch_id, out_of_memory))

    def _answers(
        self, batch: Batch, outputs: Sequence[BatchOutput], timing: BatchTiming
    ) -> list[End]:
        """Each request's own part of the batch, for those that are still waited for."""
        alone = len(batch.requests) == 1
        cuts = list(zip(outputs, self._cut_axes, strict=True))
        ends: list[End] = []
        row = 0
        for request in batch.requests:
            first, row = row, row + request.rows
            ticket = self._tickets.get(request.id)
            if ticket is None:
                continue
            parts = [
                output if alone else rows_of(output, first, row, axes, request.length, batch.length)
                for output, axes in map(cuts.__getitem__, ticket.wanted)
            ]
            queue_s = batch.started_s - request.arrival_s
            try:
                kept = self._kept(parts, ticket)
            except ServingError as error:  # of this request alone: its own memory is amiss
                request.failed, error.counted = error.reason, True
                ends.append((request.id, error))
            else:
                ends.append((request.id, Answer(kept, batch.rows, queue_s, timing)))
        return ends

    def _kept(self, parts: Sequence[BatchOutput], ticket: _Ticket) -> list[AnswerTensor]:
        """Copy a request's outputs out of the batch's memory. Raises `ServingError`."""
        spans = ticket.tensors.spans
        if spans is None:
            return [AnswerTensor(part.shape, bytes(part.data)) for part in parts]
        if spans.problem is not None:
            raise ServingError(Reason.REGION_UNUSABLE, problem=spans.problem)
        return [
            keep(part, spans.outputs.get(position), self._output_names[position])
            for position, part in zip(ticket.wanted, parts, strict=True)
        ]

    # -- the shell --------------------------------------------------------------------------

    def _handle(self, event: Event, now: float | None = None) -> None:
        scheduler = self._scheduler
        if now is None:
            now = self._clock.now()
        actions = scheduler.handle(event, now)
        if actions:
            self._perform(actions, now)
        if scheduler.awaits_idle and not self._waits_for_idle:
            self._waits_for_idle = True
            self._clock.call_when_idle(self._idle)
        wakeup_s = scheduler.next_wakeup()
        if wakeup_s is not None and wakeup_s < self._timer_at_s:
            self._arm(wakeup_s, now)
        if self._ends:
            ends, self._ends = self._ends, []
            self._tell(ends)

    def _tell(self, ends: Sequence[End]) -> None:
        """Tell everybody how their calls ended; nobody's trouble is another's."""
        for request_id, end in ends:
            ticket = self._tickets.pop(request_id, None)
            if ticket is None:
                continue  # cancelled by somebody who was told before
            try:
                if isinstance(end, ServingError):
                    ticket.waiter.refused(end)
                else:
                    ticket.waiter.answered(end)
            except Exception:
                log.exception("the end of a call could not be told")

    def _arm(self, wakeup_s: float, now: float) -> None:
        """Wake at that moment. A timer that turns out too early just asks again; one per moment
        that moves later would cost more than it saves."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = wakeup_s
        if wakeup_s <= now:
            self._timer = self._clock.call_soon(self._wake)
        else:
            self._timer = self._clock.call_at(wakeup_s, self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_at_s = None, math.inf
        self._handle(TimeAdvanced())

    def _idle(self) -> None:
        self._waits_for_idle = False
        self._handle(ProcessIdle())

    def _perform(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            match action:
                case Dispatch(batch):
                    self._dispatch(batch, now)
                case Reject(request, reason):
                    self._reject(request, reason, now)
                case Restart(worker_id):
                    self._restart(worker_id, now)
                case Release(worker_id):
                    self._executor.release(worker_id)
                case Drained():
                    self._drained.set()

    def _dispatch(self, batch: Batch, now: float) -> None:
        self._in_flight[batch.id] = batch
        tensors = [self._tickets[request.id].tensors for request in batch.requests]
        self._executor.run(batch.worker_id, batch.id, tensors)
        batch.handed_over_s = self._clock.now() - now
        self._observer.batch_dispatched(self._deployment, batch, now)

    def _restart(self, worker_id: int, now: float) -> None:
        running = self._take_back(worker_id)[0]
        log.warning(
            "worker %d of model '%s' hangs: %d rows were not answered in %.1f s; ending it",
            worker_id,
            self._deployment.name,
            running.rows,
            now - running.started_s,
        )
        self._executor.restart(worker_id)

    def _take_back(self, worker_id: int) -> list[Batch]:
        """What was in flight on this worker, the running batch first; it is not any more."""
        taken = [batch for batch in self._in_flight.values() if batch.worker_id == worker_id]
        for batch in taken:
            del self._in_flight[batch.id]
        return taken

    def _reject(self, request: Request, reason: Reason, now: float) -> None:
        if request.id not in self._tickets:
            return  # cancelled while it was in flight
        error = ServingError(reason, model=self._deployment.name, why=NO_WORKER)
        error.counted = True
        if self._entering == request.id:
            self._entering = None
            del self._tickets[request.id]
            self._refused_at_once.append(error)
        else:
            self._ends.append((request.id, error))
        self._observer.request_refused(self._deployment, request, reason, now)

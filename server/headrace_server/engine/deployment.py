"""One version of a model as it is served: its scheduler, its workers, and everyone who waits.

Performs the scheduler's actions and is the only place where futures are resolved.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

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
    Reject,
    RequestCancelled,
    RequestSubmitted,
    Restart,
    ServiceAbandoned,
    TimeAdvanced,
    WorkerLost,
    WorkerReady,
)
from headrace_server.core.explanation import Explanation
from headrace_server.core.request import Batch, Request
from headrace_server.core.scheduler import Scheduler
from headrace_server.engine.calls import Answer, AnswerTensor, Call
from headrace_server.engine.clock import Clock, TimerHandle
from headrace_server.engine.cutting import ragged_output_axes, rows_of
from headrace_server.engine.observer import Observer
from headrace_server.engine.riding import RidingRules
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import (
    BatchOutput,
    BatchTiming,
    Executor,
    ModelLoadError,
    RequestTensors,
    WorkerState,
)

log = logging.getLogger("headrace.engine")


NO_WORKER = "its workers are lost again and again, the repository index says why"
"""What a caller is told who waited for one, or would have to."""


class DeploymentState(Enum):
    """Where a deployment stands. The value is the word of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request's other half: what the scheduler does not look at."""

    request: Request
    tensors: RequestTensors
    future: asyncio.Future[Answer]


class Deployment:
    """Serves one version of one model.

    Life: constructed LOADING; `load` makes it READY or UNAVAILABLE; `drain` lets it finish and
    `stop` ends its workers. While no worker lives it stays in the state READY but `ready` is
    false: requests wait for the worker that is being restarted, as long as the scheduler lets
    them, and `shown` tells the index what is amiss.
    """

    def __init__(
        self,
        name: str,
        version: int,
        executor: Executor,
        rules: Callable[[ModelSpec], SchedulingRules],
        clock: Clock,
        observer: Observer,
        preparation: Callable[[SchedulingRules], Deployment] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.state = DeploymentState.LOADING
        self.reason = ""
        self.workers: dict[int, WorkerState] = {}
        self._why_lost = ""
        self._load_began_s = 0.0
        self._executor = executor
        self._make_rules = rules
        self._make_preparation = preparation
        self._preparation: Deployment | None = None
        self._clock = clock
        self._observer = observer
        self._spec: ModelSpec | None = None
        self._rules: SchedulingRules | None = None
        self._scheduler: Scheduler | None = None
        self._riding: RidingRules | None = None
        self._cut_axes: Sequence[Sequence[int]] = ()
        self._tickets: dict[int, _Ticket] = {}
        self._in_flight: dict[int, Batch] = {}
        self._next_id = 0
        self._timer: TimerHandle | None = None
        self._timer_at_s = math.inf
        self._drained = asyncio.Event()

    # -- what others read -------------------------------------------------------------------

    @property
    def spec(self) -> ModelSpec:
        """The model's signature. Only once loaded."""
        assert self._spec is not None, "the model is not loaded"
        return self._spec

    @property
    def rules(self) -> SchedulingRules:
        """How its requests are scheduled. Only once loaded."""
        assert self._rules is not None, "the model is not loaded"
        return self._rules

    @property
    def loaded(self) -> bool:
        """Whether `spec` and `rules` are known."""
        return self._spec is not None

    @property
    def ready(self) -> bool:
        """Whether a request sent now would find a live worker."""
        return (
            self.state is DeploymentState.READY
            and WorkerState.READY in self.workers.values()
            and (self._preparation is None or self._preparation.ready)
        )

    @property
    def shown(self) -> tuple[DeploymentState, str]:
        """What the repository index says: state and reason, by what is so at this moment."""
        if self.state is not DeploymentState.READY or self.ready:
            return self.state, self.reason
        stage = self._preparation
        if stage is not None and not stage.ready:
            return stage.shown
        why = f"its last worker was lost ({self._why_lost or 'its socket was closed'})"
        return DeploymentState.UNAVAILABLE, f"{why}; another one is being started"

    @property
    def prepares(self) -> bool:
        """Whether requests are prepared before they queue: `infer` does it, `submit` does not."""
        return self._preparation is not None

    @property
    def queued_requests(self) -> int:
        """Requests that wait."""
        return 0 if self._scheduler is None else len(self._scheduler.queue)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the inputs of requests that wait."""
        return 0 if self._scheduler is None else self._scheduler.queue.nbytes

    @property
    def devices(self) -> Sequence[str]:
        """The device of each worker."""
        return self._executor.devices()

    def explain(self, lengths: Sequence[int]) -> Explanation | None:
        """What its policy expects of batches padded to these lengths; None under fixed rules.
        Only once loaded."""
        assert self._scheduler is not None, "the model is not loaded"
        return self._scheduler.explain(lengths)

    # -- life -------------------------------------------------------------------------------

    async def load(self) -> None:
        """Start the workers; never raises for the model's sake: see `state` and `reason`."""
        self._observer.deployment_added(self)
        self._load_began_s = self._clock.now()
        try:
            await self._executor.start(self)
            await self._load_preparation()
        except ModelLoadError as error:
            self.workers.clear()
            self._change(DeploymentState.UNAVAILABLE, str(error))
        except Exception:
            # One model's trouble, whatever it is, must not keep the others from being served.
            log.exception("model '%s' version %d could not be loaded", self.name, self.version)
            self.workers.clear()
            self._change(DeploymentState.UNAVAILABLE, "internal error while loading; see the log")
        else:
            if self.state is DeploymentState.LOADING:  # and not stopped meanwhile
                self._change(DeploymentState.READY)

    async def _load_preparation(self) -> None:
        if not self.spec.prepared or self._make_preparation is None:
            return
        self._preparation = self._make_preparation(self.rules)
        await self._preparation.load()
        if self._preparation.state is not DeploymentState.READY:
            await self._executor.stop()
            raise ModelLoadError(self._preparation.reason)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait until the admitted ones are answered.

        Returns whether all were, within the time given; what is left then gets an error.
        """
        if self._scheduler is None:
            return True
        self._change(DeploymentState.UNLOADING)
        # What is being prepared was admitted too: it still has to queue here.
        deadline_s = self._clock.now() + timeout_s
        if self._preparation is not None:
            await self._preparation.drain(timeout_s)
            timeout_s = max(0.0, deadline_s - self._clock.now())
        self._handle(DrainStarted())
        if self._drained.is_set():
            return True
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
        except TimeoutError:
            self._abandon()
            return False
        return True

    async def stop(self) -> None:
        """End the workers; whoever still waits gets an error."""
        self._abandon()
        if self._preparation is not None:
            await self._preparation.stop()
        await self._executor.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self.state is not DeploymentState.UNAVAILABLE:
            self.workers.clear()
            self._change(DeploymentState.UNAVAILABLE, "unloaded")

    def _abandon(self) -> None:
        self._in_flight.clear()
        self._handle(ServiceAbandoned(Reason.STOPPING))

    def kill(self) -> None:
        """End the workers at once; nobody is told anything any more."""
        if self._preparation is not None:
            self._preparation.kill()
        self._executor.kill()

    # -- requests ---------------------------------------------------------------------------

    async def infer(self, call: Call) -> Answer:
        """Answer one call. Cancelling the awaiting task takes the request back.

        Raises:
            ServingError: refused or failed, with the reason.
        """
        if self._preparation is not None:
            call = await self._prepare(self._preparation, call)
        request, future = self.submit(call)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(request)
            raise

    async def _prepare(self, preparation: Deployment, call: Call) -> Call:
        """Run the model's own `prepare` on the request; what comes out is what queues here."""
        arrived_s = self._clock.now()
        # That stage has no queue policies of its own to judge the timeout by.
        timeout_s = call.timeout_s if self.rules.refuses_late(call) else None
        answer = await preparation.infer(replace(call, timeout_s=timeout_s))
        rows = call.tensors.rows
        if any(output.shape[0] != rows for output in answer.outputs):
            log.warning("model '%s': prepare changed the number of rows", self.name)
            raise ServingError(Reason.MODEL_FAILED, model=self.name)
        for tensor, output in zip(self.spec.prepared, answer.outputs, strict=True):
            # The worker of that stage has checked everything but the length: it is the request's.
            if not tensor.admits(output.shape[1:]):
                raise ServingError(
                    Reason.WRONG_SHAPE,
                    model=self.name,
                    input=tensor.name,
                    expected=tensor.described(batched=True),
                    got=list(output.shape),
                )
        spent_s = self._clock.now() - arrived_s
        return Call(
            RequestTensors(
                rows,
                [output.data for output in answer.outputs],
                [output.shape for output in answer.outputs],
                call.tensors.parameters,
            ),
            sum(len(output.data) for output in answer.outputs),
            call.priority,
            None if call.timeout_s is None else max(0.0, call.timeout_s - spent_s),
            None if call.remaining_s is None else max(0.0, call.remaining_s - spent_s),
            arrived_s,
        )

    def submit(self, call: Call) -> tuple[Request, asyncio.Future[Answer]]:
        """Admit or refuse one call at once; the future brings the answer or a `ServingError`.

        Raises:
            ServingError: UNEQUAL_LENGTHS, REQUEST_TOO_LARGE.
        """
        assert self._riding is not None, "the model is not loaded"
        now = self._clock.now()
        most_bytes = self.rules.settings.max_batch_bytes
        # Its rows are of one length, so alone it needs no padding: these are all its bytes.
        if most_bytes is not None and call.nbytes > most_bytes:
            raise ServingError(
                Reason.REQUEST_TOO_LARGE, model=self.name, limit=most_bytes, got=call.nbytes
            )
        key, length = self._riding.of(call.tensors)
        request = self.rules.request(self._next_id, key, length, call, now)
        self._next_id += 1
        # The future is there before the scheduler hears of the request: whatever it decides,
        # there is somebody to tell.
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._tickets[request.id] = _Ticket(request, call.tensors, future)
        self._handle(RequestSubmitted(request), now)
        return request, future

    def cancel(self, request: Request) -> None:
        """The caller went away. Nothing happens to requests that ended already."""
        if self._tickets.pop(request.id, None) is not None:
            self._handle(RequestCancelled(request.id))
            self._observer.request_cancelled(self, request, self._clock.now())

    # -- what the executor reports ----------------------------------------------------------

    def model_loaded(self, spec: ModelSpec, sweep: Sequence[Sample]) -> None:
        """See `ExecutorListener.model_loaded`."""
        self._spec = spec
        self._rules = self._make_rules(spec)
        self._scheduler = self._rules.scheduler(sweep, self._clock.now() - self._load_began_s)
        self._riding = RidingRules(spec)
        self._cut_axes = ragged_output_axes(spec)

    def worker_state_changed(self, worker_id: int, state: WorkerState, detail: str) -> None:
        """See `ExecutorListener.worker_state_changed`."""
        if detail:
            self._why_lost = detail
        if self.workers.get(worker_id) is state:
            return  # how it was lost became known a moment after the loss
        self.workers[worker_id] = state
        self._observer.worker_state_changed(self, worker_id, state)

    def worker_ready(self, worker_id: int) -> None:
        """See `ExecutorListener.worker_ready`."""
        self.worker_state_changed(worker_id, WorkerState.READY, "")
        self._handle(WorkerReady(worker_id))

    def worker_lost(self, worker_id: int, detail: str) -> None:
        """See `ExecutorListener.worker_lost`."""
        self.worker_state_changed(worker_id, WorkerState.LOST, detail)
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
            answers = self._answers(batch, outputs, timing)
        except Exception as error:
            # Nobody has been told anything yet: a batch that cannot be cut is one that failed.
            self.batch_failed(batch_id, f"its outputs cannot be cut: {error!r}")
            return
        del self._in_flight[batch_id]
        now = self._clock.now()
        for request, answer in zip(batch.requests, answers, strict=True):
            ticket = self._tickets.pop(request.id, None)
            if ticket is not None and not ticket.future.done():
                ticket.future.set_result(answer)
        self._observer.batch_completed(self, batch, timing, now)
        self._handle(BatchCompleted(batch_id), now)

    def batch_failed(self, batch_id: int, detail: str, out_of_memory: bool = False) -> None:
        """See `ExecutorListener.batch_failed`."""
        self._in_flight.pop(batch_id, None)
        # The detail may quote inputs and paths: it is for the log, never for callers.
        log.warning("model '%s' version %d failed on a batch: %s", self.name, self.version, detail)
        self._handle(BatchFailed(batch_id, out_of_memory))

    def _answers(
        self, batch: Batch, outputs: Sequence[BatchOutput], timing: BatchTiming
    ) -> list[Answer]:
        """Each request's own part of the batch, in order."""
        alone = len(batch.requests) == 1
        answers = []
        row = 0
        for request in batch.requests:
            first, row = row, row + request.rows
            parts = [
                AnswerTensor(output.shape, bytes(output.data))
                if alone
                else rows_of(output, first, row, axes, request.length, batch.length)
                for output, axes in zip(outputs, self._cut_axes, strict=True)
            ]
            queue_s = batch.started_s - request.arrival_s
            answers.append(Answer(parts, batch.rows, queue_s, timing))
        return answers

    # -- the shell --------------------------------------------------------------------------

    def _change(self, state: DeploymentState, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._observer.deployment_changed(self)

    def _handle(self, event: Event, now: float | None = None) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        if now is None:
            now = self._clock.now()
        actions = scheduler.handle(event, now)
        if actions:
            self._perform(actions, now)
        wakeup_s = scheduler.next_wakeup()
        if wakeup_s is not None and wakeup_s < self._timer_at_s:
            self._arm(wakeup_s, now)

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

    def _perform(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            match action:
                case Dispatch(batch):
                    self._dispatch(batch, now)
                case Reject(request, reason):
                    self._reject(request, reason, now)
                case Restart(worker_id):
                    self._restart(worker_id, now)
                case Drained():
                    self._drained.set()

    def _dispatch(self, batch: Batch, now: float) -> None:
        self._in_flight[batch.id] = batch
        tensors = [self._tickets[request.id].tensors for request in batch.requests]
        self._executor.run(batch.worker_id, batch.id, tensors)
        self._observer.batch_dispatched(self, batch, now)

    def _restart(self, worker_id: int, now: float) -> None:
        running = self._take_back(worker_id)[0]
        log.warning(
            "worker %d of model '%s' hangs: %d rows were not answered in %.1f s; ending it",
            worker_id,
            self.name,
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
        ticket = self._tickets.pop(request.id, None)
        if ticket is None:
            return  # cancelled while it was in flight
        if not ticket.future.done():
            error = ServingError(reason, model=self.name, why=NO_WORKER)
            error.counted = True
            ticket.future.set_exception(error)
        self._observer.request_refused(self, request, reason, now)

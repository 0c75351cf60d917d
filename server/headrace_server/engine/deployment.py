"""One version of a model as it is served: how it comes to life, who works for it, how it ends.

What becomes of its requests is up to its `Dispatcher`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum

from headrace_server.core.cost import Sample
from headrace_server.core.explanation import Explanation
from headrace_server.core.request import Request
from headrace_server.engine.calls import Call, Waiter
from headrace_server.engine.clock import Clock
from headrace_server.engine.dispatcher import Dispatcher
from headrace_server.engine.observer import Observer, RefusalsOf
from headrace_server.engine.preparing import Preparing
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import (
    BatchOutput,
    BatchTiming,
    Executor,
    ModelLoadError,
    WorkerState,
)
from headrace_server.workers.placement import InstanceGroup

log = logging.getLogger("headrace.engine")


Ticket = Request | Preparing
"""What a call is known by until it has ended."""


class DeploymentState(Enum):
    """Where a deployment stands. The value is the word of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


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
        preparation: Callable[[SchedulingRules, Observer], Deployment] | None = None,
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
        self._dispatcher: Dispatcher | None = None

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
    def queued_requests(self) -> int:
        """Requests that wait, those that wait to be prepared too."""
        stage = 0 if self._preparation is None else self._preparation.queued_requests
        return stage + (0 if self._dispatcher is None else self._dispatcher.queued_requests)

    @property
    def queued_bytes(self) -> int:
        """Bytes of the inputs of requests that wait, those that wait to be prepared too."""
        stage = 0 if self._preparation is None else self._preparation.queued_bytes
        return stage + (0 if self._dispatcher is None else self._dispatcher.queued_bytes)

    @property
    def devices(self) -> Sequence[str]:
        """The device of each worker."""
        return self._executor.devices()

    def explain(self, lengths: Sequence[int]) -> Explanation | None:
        """What its policy expects of batches padded to these lengths; None under fixed rules.
        Only once loaded."""
        return self._requests.explain(lengths)

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
        observer = RefusalsOf(self._observer, self)
        self._preparation = self._make_preparation(self.rules, observer)
        await self._preparation.load()
        if self._preparation.state is not DeploymentState.READY:
            await self._executor.stop()
            raise ModelLoadError(self._preparation.reason)

    async def resize(self, groups: Sequence[InstanceGroup]) -> bool:
        """Have the workers that these groups ask for: start what is missing, then let those that
        are too many finish what they hold, and end them.

        Returns False, with nothing done, where that needs another load.

        Raises:
            ModelLoadError: a worker could not be started; everything is as it was.
        """
        surplus = await self._executor.resize(groups)
        if surplus is None:
            return False
        for worker_id in surplus:
            self._requests.dismiss(worker_id)
        return True

    async def drain(self, timeout_s: float | None) -> bool:
        """Refuse new requests and wait until the admitted ones are answered.

        Returns whether all were, within the time given; what is left then gets an error. None
        waits as long as it takes.
        """
        if self._dispatcher is None:
            return True
        self._change(DeploymentState.UNLOADING)
        deadline_s = None if timeout_s is None else self._clock.now() + timeout_s
        if self._preparation is not None:
            # What is being prepared was admitted too, and queues here by the time this returns.
            await self._preparation.drain(timeout_s)
            if deadline_s is not None:
                timeout_s = max(0.0, deadline_s - self._clock.now())
        return await self._dispatcher.drain(timeout_s)

    async def stop(self) -> None:
        """End the workers; whoever still waits gets an error."""
        if self._dispatcher is not None:
            self._dispatcher.abandon()
        if self._preparation is not None:
            await self._preparation.stop()
        await self._executor.stop()
        if self._dispatcher is not None:
            self._dispatcher.close()
        if self.state is not DeploymentState.UNAVAILABLE:
            self.workers.clear()
            self._change(DeploymentState.UNAVAILABLE, "unloaded")
        self._observer.deployment_removed(self)

    def kill(self) -> None:
        """End the workers at once; nobody is told anything any more."""
        if self._preparation is not None:
            self._preparation.kill()
        self._executor.kill()

    # -- requests ---------------------------------------------------------------------------

    def submit(self, call: Call, waiter: Waiter) -> Ticket:
        """Admit or refuse one call at once; the waiter is told how it ends.

        Raises:
            ServingError: refused, with the reason.
        """
        if self._preparation is not None:
            return Preparing(self, self._preparation, self._requests, call, waiter, self._clock)
        return self._requests.submit(call, waiter)

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits any more. Nothing happens to calls that have ended."""
        if isinstance(ticket, Preparing):
            ticket.cancel()
        else:
            self._requests.cancel(ticket)

    @property
    def _requests(self) -> Dispatcher:
        assert self._dispatcher is not None, "the model is not loaded"
        return self._dispatcher

    # -- what the executor reports ----------------------------------------------------------

    def model_loaded(self, spec: ModelSpec, sweep: Sequence[Sample]) -> None:
        """See `ExecutorListener.model_loaded`."""
        self._spec = spec
        self._rules = self._make_rules(spec)
        self._dispatcher = Dispatcher(
            self,
            spec,
            self._rules,
            sweep,
            self._clock.now() - self._load_began_s,
            self._executor,
            self._clock,
            self._observer,
        )

    def worker_state_changed(self, worker_id: int, state: WorkerState, detail: str) -> None:
        """See `ExecutorListener.worker_state_changed`."""
        if detail:
            self._why_lost = detail
        if self.workers.get(worker_id) is state:
            return  # how it was lost became known a moment after the loss
        if state is WorkerState.STOPPED:
            self.workers.pop(worker_id, None)
        else:
            self.workers[worker_id] = state
        self._observer.worker_state_changed(self, worker_id, state)

    def worker_ready(self, worker_id: int) -> None:
        """See `ExecutorListener.worker_ready`."""
        self.worker_state_changed(worker_id, WorkerState.READY, "")
        self._requests.worker_ready(worker_id)

    def worker_lost(self, worker_id: int, detail: str) -> None:
        """See `ExecutorListener.worker_lost`."""
        self.worker_state_changed(worker_id, WorkerState.LOST, detail)
        self._requests.worker_lost(worker_id)

    def batch_completed(
        self, batch_id: int, outputs: Sequence[BatchOutput], timing: BatchTiming
    ) -> None:
        """See `ExecutorListener.batch_completed`."""
        self._requests.batch_completed(batch_id, outputs, timing)

    def batch_failed(self, batch_id: int, detail: str, out_of_memory: bool = False) -> None:
        """See `ExecutorListener.batch_failed`."""
        self._requests.batch_failed(batch_id, detail, out_of_memory)

    def _change(self, state: DeploymentState, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._observer.deployment_changed(self)

"""Stand-ins for the parts that make an engine wait: its clock and its workers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from headrace_server.core.cost import Sample
from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, Request
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import (
    BatchOutput,
    BatchTiming,
    ExecutorListener,
    ModelLoadError,
    RequestTensors,
    WorkerState,
)
from headrace_server.workers.placement import InstanceGroup

TIMING = BatchTiming(input_ns=1_000, infer_ns=20_000, output_ns=300)


class FakeTimer:
    """A callback that a `FakeClock` has not run yet."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Time that passes when the test says so. Callbacks run inside `advance`, in order.

    `armed` counts the timers that were ever set for a later moment.
    """

    def __init__(self) -> None:
        self.armed = 0
        self.waiting_for_idle: list[Callable[[], None]] = []
        self._now = 100.0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def call_at(self, when_s: float, callback: Callable[[], None]) -> FakeTimer:
        self.armed += 1
        return self._add(when_s, callback)

    def call_soon(self, callback: Callable[[], None]) -> FakeTimer:
        return self._add(self._now, callback)

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        self.waiting_for_idle.append(callback)

    def be_idle(self) -> None:
        """Run who waits until nothing else is to do."""
        waiting, self.waiting_for_idle = self.waiting_for_idle, []
        for callback in waiting:
            callback()

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass, and run what is due; without argument, what is due now."""
        until_s = self._now + seconds
        while self._timers and self._timers[0][0] <= until_s:
            when_s, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when_s)
            if timer.callback is not None:
                timer.callback()
        self._now = until_s

    def _add(self, when_s: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (when_s, next(self._order), timer))
        return timer


class PuppetExecutor:
    """Workers whose strings the test pulls: it says which batch completes, fails or is lost.

    A batch is answered with its first input, unless the test gives other outputs. The memory of
    the answer is wiped as soon as the listener has been told, as a worker would reuse its slab.
    Once started, `held` lists the batches of each living worker, the running one first. Loading
    waits for the `gate`. Workers that are `fixed` cannot be resized.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        workers: int = 1,
        load_error: str = "",
        sweep: Sequence[Sample] = (),
        gate: asyncio.Event | None = None,
    ) -> None:
        self.load_error = load_error
        self.fixed = False
        self.held: dict[int, deque[int]] = {}
        self.batches: dict[int, Sequence[RequestTensors]] = {}
        self.restarted: list[int] = []
        self.released: list[int] = []
        self.stopped = 0
        self.killed = 0
        self._spec = spec
        self._workers = workers
        self._gate = gate
        self._sweep = sweep
        self._listener: ExecutorListener | None = None

    # -- what an executor does --------------------------------------------------------------

    async def start(self, listener: ExecutorListener) -> None:
        self._listener = listener
        if self._gate is not None:
            await self._gate.wait()
        if self.load_error:
            raise ModelLoadError(self.load_error)
        listener.model_loaded(self._spec, self._sweep)
        for worker_id in range(self._workers):
            self.restore(worker_id)

    def run(self, worker_id: int, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        assert batch_id not in self.batches, "a batch is run twice"
        self.held[worker_id].append(batch_id)
        self.batches[batch_id] = requests

    def restart(self, worker_id: int) -> None:
        self.restarted.append(worker_id)

    async def resize(self, groups: Sequence[InstanceGroup]) -> Sequence[int] | None:
        if self.load_error:
            raise ModelLoadError(self.load_error)
        if self.fixed:
            return None
        wanted = sum(group.count for group in groups)
        surplus = range(wanted, self._workers)
        for worker_id in range(self._workers, wanted):
            self.restore(worker_id)
        self._workers = wanted
        return surplus

    def release(self, worker_id: int) -> None:
        assert not self.held.pop(worker_id, None), "a worker that holds something is ended"
        self.released.append(worker_id)
        self.listener.worker_state_changed(worker_id, WorkerState.STOPPED, "")

    async def stop(self) -> None:
        self.stopped += 1
        self.held.clear()

    def kill(self) -> None:
        self.killed += 1
        self.held.clear()

    def devices(self) -> Sequence[str]:
        return ["cpu"] * self._workers

    # -- the strings ------------------------------------------------------------------------

    @property
    def listener(self) -> ExecutorListener:
        assert self._listener is not None, "the executor was not started"
        return self._listener

    def complete(self, batch_id: int, *outputs: BatchOutput) -> None:
        """The worker answers its running batch."""
        self._take(batch_id)
        answers = outputs or (self._echo(batch_id),)
        self.listener.batch_completed(batch_id, answers, TIMING)
        for answer in answers:
            answer.data[:] = bytes(len(answer.data))

    def fail(self, batch_id: int, detail: str = "the model raised") -> None:
        self._take(batch_id)
        self.listener.batch_failed(batch_id, detail)

    def lose(self, worker_id: int) -> None:
        del self.held[worker_id]
        self.listener.worker_lost(worker_id, "killed by SIGKILL")

    def restore(self, worker_id: int) -> None:
        self.held[worker_id] = deque()
        self.listener.worker_ready(worker_id)

    def _take(self, batch_id: int) -> None:
        worker_id = next(w for w, batches in self.held.items() if batch_id in batches)
        assert self.held[worker_id].popleft() == batch_id, "that batch is staged, not running"

    def _echo(self, batch_id: int) -> BatchOutput:
        requests = self.batches[batch_id]
        shape = requests[0].shapes[0]
        assert shape is not None
        data = bytearray(b"".join(request.data[0] or b"" for request in requests))
        rows = sum(request.rows for request in requests)
        return BatchOutput((rows, *shape[1:]), memoryview(data))


class RecordingObserver(Observer):
    """Keeps what it is told, as short words."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def deployment_added(self, deployment: Deployment) -> None:
        self.told.append("added")

    def deployment_changed(self, deployment: Deployment) -> None:
        self.told.append(deployment.state.value)

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        self.told.append(f"refused {request.id} {reason.value}")

    def request_cancelled(self, deployment: Deployment, request: Request, now: float) -> None:
        self.told.append(f"cancelled {request.id}")

    def batch_dispatched(self, deployment: Deployment, batch: Batch, now: float) -> None:
        self.told.append(f"dispatched {batch.id}")

    def batch_completed(
        self, deployment: Deployment, batch: Batch, timing: BatchTiming, now: float
    ) -> None:
        self.told.append(f"completed {batch.id}")

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        self.told.append(f"worker {worker_id} {state.value}")

"""The interface between the engine and whatever runs batches: executors and their listener."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from headrace_server.core.cost import Sample
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.regions import RequestSpans, Span

if TYPE_CHECKING:
    from headrace_server.workers.placement import InstanceGroup

Parameter = bool | int | float | str


@dataclass(slots=True, eq=False)
class RequestTensors:
    """The contents of one request, as they came from the wire and passed validation.

    `data` holds the raw bytes of each input in the order of `ModelSpec.inputs` (None for an
    optional input that was left out), or where they lie in memory shared by the client; `shapes`
    its full shape, batch dimension included. `parameters` are the custom parameters that the model
    gets to see. `spans`: all of the client's memory that the request uses, None for most.
    """

    rows: int
    data: Sequence[bytes | memoryview | Span | None]
    shapes: Sequence[tuple[int, ...] | None]
    parameters: Mapping[str, Parameter]
    spans: RequestSpans | None = None


@dataclass(slots=True, eq=False)
class BatchOutput:
    """One output of a whole batch. `data` is valid only until the listener's call returns.

    `shape` includes the batch dimension. `row_offsets` (BYTES only): where each row begins in
    `data`, and the end of the last one. `row_shapes`: the shape of each row, where they differ;
    `data` then holds their elements one after the other.
    """

    shape: tuple[int, ...]
    data: memoryview
    row_offsets: Sequence[int] | None = None
    row_shapes: Sequence[tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """Where the worker spent its time on one batch, in nanoseconds."""

    input_ns: int
    infer_ns: int
    output_ns: int

    @property
    def compute_ns(self) -> int:
        """All of it."""
        return self.input_ns + self.infer_ns + self.output_ns


class WorkerState(Enum):
    """Where a worker stands in its life. The value is the metric label."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    READY = "ready"
    LOST = "lost"
    STOPPED = "stopped"


class ModelLoadError(Exception):
    """A model could not be loaded by any worker; the text says why, for operators."""


class ExecutorListener(Protocol):
    """What an executor reports. Called on the event loop, in the order in which things happened.

    For one worker: `worker_ready`, batches, `worker_lost`; nothing of a batch after the loss of
    its worker.
    """

    def worker_state_changed(self, worker_id: int, state: WorkerState, detail: str) -> None:
        """A worker went on to this state; READY and LOST have calls of their own too."""
        ...

    def model_loaded(self, spec: ModelSpec, sweep: Sequence[Sample]) -> None:
        """The first worker has loaded the model, and timed a few batches to plan from.

        Comes once, before any worker is ready.
        """
        ...

    def worker_ready(self, worker_id: int) -> None:
        """The worker takes batches from now on."""
        ...

    def worker_lost(self, worker_id: int, detail: str) -> None:
        """The worker is gone, with every batch that it held."""
        ...

    def batch_completed(
        self, batch_id: int, outputs: Sequence[BatchOutput], timing: BatchTiming
    ) -> None:
        """The answers of a batch, in the order of `ModelSpec.outputs`."""
        ...

    def batch_failed(self, batch_id: int, detail: str, out_of_memory: bool = False) -> None:
        """The model raised or answered nonsense, or had no memory for a batch of this size; the
        worker lives."""
        ...


class Executor(Protocol):
    """Starts workers for one version of a model and runs batches on them."""

    async def start(self, listener: ExecutorListener) -> None:
        """Load the model on the first worker, bring up the others; returns when all are ready.

        Raises:
            ModelLoadError: the model cannot be loaded; nothing is left running.
        """
        ...

    def run(self, worker_id: int, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        """Run a batch behind what the worker already holds. Never blocks, never raises for the
        worker's sake: failures come through the listener."""
        ...

    def restart(self, worker_id: int) -> None:
        """End a worker that hangs, at once and unasked, and start another in its place. Its loss
        is reported as any other, later; it answers nothing any more."""
        ...

    async def resize(self, groups: Sequence[InstanceGroup]) -> Sequence[int] | None:
        """Start the workers that these groups ask for and there are not; returns once they are
        ready, with the ids of those that are too many, which `release` is to end.

        None, and nothing is done, where workers would have to be replaced by others: on another
        device, or with another number of threads.

        Raises:
            ModelLoadError: one could not be started; everything is as it was.
        """
        ...

    def release(self, worker_id: int) -> None:
        """End a worker that holds nothing, for good; it is reported as STOPPED, and no more."""
        ...

    async def stop(self) -> None:
        """End all workers, without a word to the listener. Safe to call twice."""
        ...

    def kill(self) -> None:
        """End all workers at once, unfinished work and all; nothing is restarted."""
        ...

    def devices(self) -> Sequence[str]:
        """The device of each worker, in order: "cpu", "cuda:0", ..."""
        ...

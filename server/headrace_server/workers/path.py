"""How batches get from a worker's input slabs through its model and into its output slabs.

Workers only: imports torch.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Protocol

from headrace_server.models.errors import described
from headrace_server.workers import frames
from headrace_server.workers.runner import BatchRunner, RunTimes

Answer = Callable[[frames.FromWorker], None]
"""Takes a `BatchDone` or a `BatchError`; called in the order of the batches."""

Reserve = Callable[[int], memoryview]
"""Called once for a batch with the bytes that its outputs need; returns where they go."""

log = logging.getLogger("headrace.worker")


class BatchPath(Protocol):
    """Answers every batch exactly once, in order; no batch is touched by another one's failure."""

    def submit(self, message: frames.RunBatch, memory: memoryview, reserve: Reserve) -> None:
        """Run a batch whose inputs lie in this memory. It and what `reserve` returned are in use
        until the answer."""
        ...

    def close(self) -> None:
        """Wait until everything is answered."""
        ...


class DirectPath:
    """Runs each batch to its end before it returns: right where the host does the work."""

    def __init__(self, runner: BatchRunner, answer: Answer) -> None:
        self._runner = runner
        self._answer = answer

    def submit(self, message: frames.RunBatch, memory: memoryview, reserve: Reserve) -> None:
        """See `BatchPath.submit`."""
        try:
            places, times = self._runner.run(memory, message.tensors, message.parameters, reserve)
        except Exception as error:
            self._answer(failure(self._runner, message, error))
            return
        self._answer(success(message, places, times))

    def close(self) -> None:
        """See `BatchPath.close`."""


def success(
    message: frames.RunBatch, places: tuple[frames.TensorPlace, ...], times: RunTimes
) -> frames.BatchDone:
    """What the front is told when a batch's outputs lie at these places."""
    return frames.BatchDone(
        message.batch_id,
        message.slab,
        places,
        times.input_ns,
        times.infer_ns,
        times.output_ns,
    )


def failure(runner: BatchRunner, message: frames.RunBatch, error: Exception) -> frames.BatchError:
    """What the front is told when the model fails: its batch's failure, never the worker's end."""
    log.warning("the model failed on a batch:\n%s", traceback.format_exc())
    detail = frames.sendable(described(error))
    return frames.BatchError(message.batch_id, detail, runner.ran_out_of_memory(error))

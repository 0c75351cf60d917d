"""Runs batches on a device that works beside the host: while one computes, the next is copied in.

Workers only: imports torch.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread

import torch

from headrace_server.workers import frames
from headrace_server.workers.device import Device, Lane, Mark
from headrace_server.workers.path import Answer, Reserve, failure, success
from headrace_server.workers.runner import BatchRunner, RunTimes, Tensor

log = logging.getLogger("headrace.worker")


@dataclass(slots=True, eq=False)
class _InFlight:
    """A batch that is queued on the device. `marks` are waited for before its answer goes out:
    until then its slabs are in use. `held` must not be freed before either."""

    answer: Callable[[], frames.FromWorker]
    marks: tuple[Mark, ...]
    held: list[object] = field(default_factory=list)


class PipelinedPath:
    """Queues upload, computation and download of each batch on lanes of their own.

    The caller's thread queues and goes on to the next batch; a second thread waits for the device
    and sends the answers, in the order of the batches. How many batches are in flight is up to who
    sends them: the front has as many as slabs. What holds at any time:

    - A batch computes after its own upload, and its download begins after its computation.
    - Its answer, also that of a failed one, goes out when nothing queued for it uses its slabs any
      more; only then may the front write to them again.
    - Tensors of a batch are let go of no earlier.
    - Where a model may write to what it returned before, a batch computes only after the previous
      download.

    What a batch raises is that batch's failure. A device that is broken takes the process with it:
    `on_broken` is called, from either thread, and no answer goes out any more.
    """

    def __init__(
        self,
        runner: BatchRunner,
        device: Device,
        answer: Answer,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._runner = runner
        self._device = device
        self._answer = answer
        self._on_broken = on_broken
        self._in_flight: SimpleQueue[_InFlight | None] = SimpleQueue()
        self._downloaded: Mark | None = None
        self._thread = Thread(target=self._finish_all, name="headrace-answers", daemon=True)
        self._thread.start()

    def submit(self, message: frames.RunBatch, memory: memoryview, reserve: Reserve) -> None:
        """See `BatchPath.submit`. Returns once everything is queued."""
        try:
            batch = self._queue(message, memory, reserve)
        except Exception as error:
            # Some of it may be queued: whatever that is has to end first, before its slabs are
            # used again, and before what the error's frames hold is let go of.
            broken = self._device.is_broken()
            failed = failure(self._runner, message, error)
            if broken:
                self._on_broken(error)
                return
            batch = _InFlight(lambda: failed, ())
        self._in_flight.put(batch)

    def close(self) -> None:
        """See `BatchPath.close`."""
        self._in_flight.put(None)
        self._thread.join()

    def _queue(self, message: frames.RunBatch, memory: memoryview, reserve: Reserve) -> _InFlight:
        device, runner = self._device, self._runner
        views = runner.views(memory, message.tensors)
        began = device.mark(Lane.UPLOAD)
        uploaded: dict[str, Tensor] = {
            name: device.copy_in(view) if isinstance(view, torch.Tensor) else view
            for name, view in views.items()
        }
        ready = device.mark(Lane.UPLOAD)
        device.follow(Lane.COMPUTE, ready)
        if self._downloaded is not None and runner.overwrites_outputs:
            device.follow(Lane.COMPUTE, self._downloaded)
        started = device.mark(Lane.COMPUTE)
        outputs: Mapping[str, Tensor] = device.compute(
            lambda: runner.infer(uploaded, message.parameters)
        )
        computed = device.mark(Lane.COMPUTE)
        device.follow(Lane.DOWNLOAD, computed)
        download = device.mark(Lane.DOWNLOAD)
        places = runner.write(outputs, message.tensors, reserve, device.copy_out)
        written = self._downloaded = device.mark(Lane.DOWNLOAD)

        def answer() -> frames.FromWorker:
            times = RunTimes(
                began.ns_until(ready), started.ns_until(computed), download.ns_until(written)
            )
            return success(message, places, times)

        return _InFlight(answer, (written,), [views, uploaded, outputs])

    def _finish_all(self) -> None:
        while (batch := self._in_flight.get()) is not None:
            try:
                for mark in batch.marks:
                    mark.wait()
                answer = batch.answer()
                batch.held.clear()
                self._answer(answer)
            except (BrokenPipeError, ConnectionResetError):
                return  # the server is gone
            except Exception as error:
                log.error("a batch could not be answered:\n%s", traceback.format_exc())
                self._on_broken(error)
                return

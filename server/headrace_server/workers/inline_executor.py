"""Runs a model in this very process, on the event loop: for tests and for trying a model out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace_server.models.errors import described
from headrace_server.models.loading import LoadedModel
from headrace_server.workers.executor import (
    BatchOutput,
    BatchTiming,
    ExecutorListener,
    RequestTensors,
)
from headrace_server.workers.gathering import gather
from headrace_server.workers.placement import InstanceGroup
from headrace_server.workers.runner import BatchRunner


class InlineExecutor:
    """One worker, on the CPU, that shares the process and the event loop with its caller.

    A batch runs in a loop callback of its own, so the loop stands still meanwhile. The memory it
    reads is a plain bytearray in the place of a slab; everything else is what a worker does.
    """

    def __init__(self, load: Callable[[], LoadedModel]) -> None:
        self._load = load
        self._model: LoadedModel | None = None
        self._runner: BatchRunner | None = None
        self._listener: ExecutorListener | None = None

    async def start(self, listener: ExecutorListener) -> None:
        """See `Executor.start`."""
        self._listener = listener
        self._model = self._load()
        self._runner = BatchRunner(self._model)
        listener.model_loaded(self._model.spec, ())
        listener.worker_ready(0)

    def run(self, worker_id: int, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        """See `Executor.run`."""
        asyncio.get_running_loop().call_soon(self._run, batch_id, tuple(requests))

    def restart(self, worker_id: int) -> None:
        """See `Executor.restart`. There is no other process to end: it only lets go of what it
        was given."""
        asyncio.get_running_loop().call_soon(self._restart, worker_id)

    async def resize(self, groups: Sequence[InstanceGroup]) -> Sequence[int] | None:
        """See `Executor.resize`. There is one worker, whatever is asked for."""
        return ()

    def release(self, worker_id: int) -> None:
        """See `Executor.release`."""
        raise AssertionError("no worker is ever too many")

    async def stop(self) -> None:
        """See `Executor.stop`."""
        if self._model is not None:
            self._model.close()
        self._model = self._runner = self._listener = None

    def kill(self) -> None:
        """See `Executor.kill`."""
        self._model = self._runner = self._listener = None

    def devices(self) -> Sequence[str]:
        """See `Executor.devices`."""
        return ["cpu"]

    def _restart(self, worker_id: int) -> None:
        if self._listener is not None:
            self._listener.worker_lost(worker_id, "took too long")
            self._listener.worker_ready(worker_id)

    def _run(self, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        if self._model is None or self._runner is None or self._listener is None:
            return  # stopped meanwhile
        inputs, outputs = _Memory(), _Memory()
        spec = self._model.spec
        places, parameters = gather(spec.batched_inputs, requests, inputs.reserve, spec.made)
        try:
            written, times = self._runner.run(inputs.view, places, parameters, outputs.reserve)
        except Exception as error:
            full = self._runner.ran_out_of_memory(error)
            self._listener.batch_failed(batch_id, described(error), full)
            return
        answers = [
            BatchOutput(
                place.shape,
                outputs.view[place.offset : place.offset + place.nbytes],
                place.row_offsets,
                place.row_shapes,
            )
            for place in written
        ]
        timing = BatchTiming(times.input_ns, times.infer_ns, times.output_ns)
        self._listener.batch_completed(batch_id, answers, timing)


class _Memory:
    """Plain memory in the place of a slab."""

    def __init__(self) -> None:
        self.view = memoryview(b"")

    def reserve(self, nbytes: int) -> memoryview:
        self.view = memoryview(bytearray(nbytes))
        return self.view

"""The front's side of one worker process: spawn, handshake, slabs, batches, end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from headrace_server.models.errors import described
from headrace_server.models.repository import ModelSource
from headrace_server.models.spec import ModelSpec, Role
from headrace_server.workers import frames
from headrace_server.workers.child import Child, how_it_ended
from headrace_server.workers.connection import WorkerConnection
from headrace_server.workers.executor import (
    BatchOutput,
    BatchTiming,
    ModelLoadError,
    RequestTensors,
    WorkerState,
)
from headrace_server.workers.gathering import gather
from headrace_server.workers.nursery import NotBornError, start_worker
from headrace_server.workers.placement import Placement
from headrace_server.workers.slab import ReadableSlab, WritableSlab

log = logging.getLogger("headrace.workers")

T = TypeVar("T")

SLABS = 2
"""One for the batch that runs, one for the batch that is staged."""

STOP_TIMEOUT_S = 5.0
"""How long a worker may take to end after `Stop` before it is killed."""

CLOSED_GRACE_S = 1.0
"""How long a worker that closed its socket may take to end by itself before it is killed."""


class WorkerDiedError(Exception):
    """The process ended, or closed its socket, before it was ready."""


class WorkerProcess:
    """One worker process from spawn to end.

    Life: `spawn`, `load`, then `run` any number of times, and `stop`; `lost` resolves when its
    socket is closed, and `died` when the process is gone, with a text that says how. Callbacks
    come on the event loop: `on_state` for progress, `on_done` and `on_error` for batches; none
    comes after `lost` has resolved.
    """

    def __init__(
        self,
        on_state: Callable[[WorkerState], None],
        on_done: Callable[[int, Sequence[BatchOutput], BatchTiming], None],
        on_error: Callable[[int, str, bool], None],
        on_log: Callable[[int, str], None],
        name: str,
    ) -> None:
        self._on_state = on_state
        self._on_done = on_done
        self._on_error = on_error
        self._on_log = on_log
        self._name = name
        loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[frames.Hello] = loop.create_future()
        self._loaded: asyncio.Future[frames.Loaded] = loop.create_future()
        self._spec: ModelSpec | None = None
        self.lost: asyncio.Future[None] = loop.create_future()
        self.died: asyncio.Future[str] = loop.create_future()
        self._process: Child | None = None
        self._connection: WorkerConnection | None = None
        self._inputs = [WritableSlab() for _ in range(SLABS)]
        self._free = deque(range(SLABS))
        self._slab_of: dict[int, int] = {}
        self._outputs: dict[int, ReadableSlab] = {}
        self._reaper: asyncio.Task[None] | None = None
        self._stopping = False
        self._killed_because = ""

    @property
    def pid(self) -> int | None:
        """The process id, once spawned."""
        return None if self._process is None else self._process.pid

    async def spawn(self) -> frames.Hello:
        """Start the process and wait until torch is imported there. Raises `WorkerDiedError`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await start_worker(theirs, self._name)
        except NotBornError as error:
            ours.close()
            raise WorkerDiedError(str(error)) from None
        except BaseException:
            ours.close()
            raise
        self._connection = WorkerConnection(ours, self._receive, self._closed)
        self._reaper = asyncio.create_task(self._reap(self._process))
        return await self._unless_dead(self._hello)

    async def load(
        self,
        source: ModelSource,
        config: bytes,
        role: Role,
        placement: Placement,
        *,
        sweep: bool,
        cache: str,
        weights: int | None = None,
    ) -> frames.Loaded:
        """Load and warm up the model; returns its signature and the batches timed meanwhile.

        `weights` is the descriptor of the memory file that the model's workers share, if any.

        Raises:
            ModelLoadError: the model cannot be served; the worker has ended itself.
            WorkerDiedError: the process ended on the way.
        """
        assert self._connection is not None
        self._connection.send(
            frames.Load(
                source.name,
                source.version,
                str(source.file),
                source.kind.value,
                config,
                role.value,
                placement.device,
                placement.threads,
                sweep,
                cache,
                source.pickle,
                placement.pinned_to,
                weights is not None,
            ),
            None if weights is None else os.dup(weights),
        )
        loaded = await self._unless_dead(self._loaded)
        self._spec = loaded.spec
        return loaded

    def run(self, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        """Copy the requests into a free slab and send the batch."""
        connection, spec = self._connection, self._spec
        assert connection is not None
        assert spec is not None
        index = self._free.popleft()
        self._slab_of[batch_id] = index

        def reserve(nbytes: int) -> memoryview:
            slab = self._inputs[index]
            descriptor = slab.reserve(nbytes)
            if descriptor is not None:
                connection.send(frames.Slab(index, slab.nbytes), descriptor)
            return slab.view

        try:
            places, parameters = gather(spec.batched_inputs, requests, reserve, spec.made)
            message = frames.encode(frames.RunBatch(batch_id, index, places, parameters))
        except Exception as error:
            # No memory or no descriptors for the slab, say: this batch's failure, not the seat's.
            log.exception("a batch could not be handed to its worker")
            self._release(batch_id)
            asyncio.get_running_loop().call_soon(self._on_error, batch_id, described(error), False)
            return
        connection.send_encoded(message)

    async def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask the process to end, kill it if it does not, and wait until it is gone."""
        self._stopping = True
        if self._connection is not None:
            self._connection.send(frames.Stop())
        if self._reaper is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(self._reaper), timeout_s)
        except TimeoutError:
            self.kill(f"it had not ended {timeout_s:g} s after it was told to")
            await self._reaper

    def kill(self, reason: str) -> None:
        """End the process at once; `died` follows, and gives the reason."""
        if self._process is not None and self._process.returncode is None:
            self._killed_because = self._killed_because or reason
            self._process.kill()

    def give_up(self) -> None:
        """End the process at once and take it for lost from now on: it may take a while until the
        kernel has ended it."""
        self.kill("it took too long")
        if self._connection is not None:
            self._connection.close()
        if not self.lost.done():
            self.lost.set_result(None)

    async def _unless_dead(self, future: asyncio.Future[T]) -> T:
        await asyncio.wait((future, self.died), return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        raise WorkerDiedError(self.died.result())

    def _receive(self, message: frames.FromWorker, descriptor: int | None) -> None:
        match message:
            case frames.BatchDone():
                self._batch_done(message)
            case frames.Slab():
                assert descriptor is not None
                old = self._outputs.pop(message.index, None)
                if old is not None:
                    old.close()
                self._outputs[message.index] = ReadableSlab(descriptor, message.nbytes)
            case frames.BatchError():
                self._release(message.batch_id)
                self._on_error(message.batch_id, message.detail, message.out_of_memory)
            case frames.Progress():
                self._on_state(WorkerState(message.state))
            case frames.Log():
                self._on_log(message.level, message.text)
            case frames.Hello():
                self._hello.set_result(message)
            case frames.Loaded():
                self._loaded.set_result(message)
            case frames.LoadFailed():
                self._loaded.set_exception(ModelLoadError(message.detail))

    def _batch_done(self, message: frames.BatchDone) -> None:
        slab = self._outputs.get(message.slab)
        memory = memoryview(b"") if slab is None else slab.view
        outputs = [
            BatchOutput(
                place.shape,
                memory[place.offset : place.offset + place.nbytes],
                place.row_offsets,
                place.row_shapes,
            )
            for place in message.tensors
        ]
        self._release(message.batch_id)
        timing = BatchTiming(message.input_ns, message.infer_ns, message.output_ns)
        self._on_done(message.batch_id, outputs, timing)

    def _release(self, batch_id: int) -> None:
        self._free.append(self._slab_of.pop(batch_id))

    def _closed(self, detail: str) -> None:
        # The socket is the first to tell, once every answer in it was read; a moment later the
        # process says itself how it ended. One that closed its socket and lives on is of no use.
        log.debug("a worker's socket: %s", detail)
        self.lost.set_result(None)
        if self._stopping:
            return  # it is waited for already, and for longer
        reason = f"it had not ended {CLOSED_GRACE_S:g} s after it closed its connection"
        asyncio.get_running_loop().call_later(CLOSED_GRACE_S, self.kill, reason)

    async def _reap(self, process: Child) -> None:
        status = await process.wait()
        # Answers that it still sent are read before its loss is told. A child of the worker may
        # hold the socket open: then nothing is waited for.
        await asyncio.wait((self.lost,), timeout=CLOSED_GRACE_S)
        if self._connection is not None:
            self._connection.close()
        if not self.lost.done():
            self.lost.set_result(None)
        for written in self._inputs:
            written.close()
        for read in self._outputs.values():
            read.close()
        if status == -signal.SIGKILL and self._killed_because:
            self.died.set_result(f"ended by the server: {self._killed_because}")
        else:
            self.died.set_result(how_it_ended(status))

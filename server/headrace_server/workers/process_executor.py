"""Runs a model on worker processes and keeps them alive: the executor that serves."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from headrace_server.models.repository import ModelSource
from headrace_server.models.spec import ModelSpec, Role
from headrace_server.models.stamps import FileStamp, changed_files, file_stamps
from headrace_server.workers.backoff import Backoff
from headrace_server.workers.executor import (
    BatchOutput,
    BatchTiming,
    ExecutorListener,
    ModelLoadError,
    RequestTensors,
    WorkerState,
)
from headrace_server.workers.frames import Loaded
from headrace_server.workers.placement import InstanceGroup, Placement, place
from headrace_server.workers.process import WorkerDiedError, WorkerProcess

MAX_FIRST_STARTS = 3
"""Times that a worker may die on its first way to READY before the model counts as broken."""

LOAD_TIMEOUT_S = 900.0
"""From the start of a worker to READY: some ten times what the largest models need that fit on one
machine. What takes longer hangs."""

log = logging.getLogger("headrace.workers")


class ProcessExecutor:
    """One operating-system process per worker, restarted with back-off when it is lost.

    Worker ids are seats: a restarted process takes the id of the lost one. The first worker tells
    which GPUs torch sees, so that the front never has to import torch. `cache` is a directory in
    which timed batches are kept from one load to the next. A worker that is not ready
    `load_timeout_s` seconds after its start is ended: one that hangs would hang again, so a first
    one is not tried twice, while one that replaces a lost worker is started again with back-off.
    All workers are loaded from the files that the first one found: where one of these has changed,
    no other worker starts beside those that serve. Files that have come since, and those that the
    first load changed, are the model's own. `pins` are the cores that CPU workers are pinned to, if
    any.
    """

    def __init__(
        self,
        source: ModelSource,
        config: bytes,
        groups: Sequence[InstanceGroup],
        *,
        cores: int,
        role: Role = Role.SERVE,
        cache: Path | None = None,
        backoff: Backoff | None = None,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        pins: Sequence[int] = (),
    ) -> None:
        self._source = source
        self._config = config
        self._role = role
        self._groups = groups
        self._cores = cores
        self._pins = pins
        self._cache = "" if cache is None else str(cache)
        self._backoff = backoff or Backoff()
        self._load_timeout_s = load_timeout_s
        self._load_s = 0.0
        self._weights: int | None = None
        self._listener: ExecutorListener | None = None
        self._spec: ModelSpec | None = None
        self._files: frozenset[FileStamp] = frozenset()
        self._cuda_devices = 0
        self._placements: dict[int, Placement] = {}
        self._dismissed: set[int] = set()
        self._serving: dict[int, WorkerProcess] = {}
        self._processes: dict[WorkerProcess, int] = {}
        self._seats: dict[int, asyncio.Task[None]] = {}
        self._next_seat = 0
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self, listener: ExecutorListener) -> None:
        """See `Executor.start`."""
        self._listener = listener
        try:
            first, loaded = await self._start_first()
            self._spec = loaded.spec
            listener.model_loaded(loaded.spec, loaded.sweep)
            await asyncio.gather(
                *[self._take(seat, None if seat else first) for seat in self._placements]
            )
        except BaseException:
            await self.stop()
            raise

    def run(self, worker_id: int, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        """See `Executor.run`."""
        self._serving[worker_id].run(batch_id, requests)

    def restart(self, worker_id: int) -> None:
        """See `Executor.restart`."""
        process = self._serving.get(worker_id)
        if process is not None:
            process.give_up()

    async def resize(self, groups: Sequence[InstanceGroup]) -> Sequence[int] | None:
        """See `Executor.resize`. Seats that stay are those taken first."""
        missing = list(self._placed(groups))
        surplus = []
        for seat, placement in self._placements.items():
            if seat in self._dismissed:
                continue  # it finishes what it holds, and ends
            if placement in missing:
                missing.remove(placement)
            else:
                surplus.append(seat)
        if missing and surplus:
            return None
        added = self._seats_for(missing)
        try:
            await asyncio.gather(*[self._take(seat, None) for seat in added])
        except BaseException:
            assert self._listener is not None
            for seat in added:
                if seat in self._serving:  # batches may be bound to it already
                    self._listener.worker_lost(seat, "")
                self.release(seat)
            raise
        self._dismissed.update(surplus)
        return surplus

    def release(self, worker_id: int) -> None:
        """See `Executor.release`."""
        assert self._listener is not None
        self._dismissed.discard(worker_id)
        del self._placements[worker_id]
        self._listener.worker_state_changed(worker_id, WorkerState.STOPPED, "")
        ending = asyncio.create_task(self._end(worker_id))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, seat: int) -> None:
        task = self._seats.pop(seat)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        processes = [process for process, of in self._processes.items() if of == seat]
        await asyncio.gather(*(process.stop() for process in processes))
        for process in processes:
            del self._processes[process]

    async def stop(self) -> None:
        """See `Executor.stop`."""
        seats = list(self._seats.values())
        for seat in seats:
            seat.cancel()
        await asyncio.gather(*seats, *self._ending, return_exceptions=True)
        await asyncio.gather(*(process.stop() for process in tuple(self._processes)))
        self._processes.clear()
        self._seats.clear()
        if self._weights is not None:
            os.close(self._weights)
            self._weights = None

    def kill(self) -> None:
        """See `Executor.kill`."""
        for seat in self._seats.values():
            seat.cancel()
        for process in self._processes:
            process.kill("the server ends at once")

    def devices(self) -> Sequence[str]:
        """See `Executor.devices`."""
        return [placement.device for placement in self._placements.values()]

    def _placed(self, groups: Sequence[InstanceGroup]) -> Sequence[Placement]:
        return place(groups, cuda_devices=self._cuda_devices, cores=self._cores, pins=self._pins)

    def _seats_for(self, placements: Sequence[Placement]) -> Sequence[int]:
        """New seats with these placements, not taken yet."""
        seats = range(self._next_seat, self._next_seat + len(placements))
        self._next_seat = seats.stop
        self._placements.update(zip(seats, placements, strict=True))
        return seats

    def _take(self, seat: int, first: WorkerProcess | None) -> asyncio.Future[None]:
        """Have a seat taken from now on; resolves once its worker is ready for the first time."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seats[seat] = asyncio.create_task(self._keep(seat, ready, first))
        return ready

    async def _start_first(self) -> tuple[WorkerProcess, Loaded]:
        for attempt in range(1, MAX_FIRST_STARTS + 1):
            self._files = await asyncio.to_thread(file_stamps, self._source)
            process = self._new_process(0)
            try:
                async with self._in_time(process):
                    hello = await process.spawn()
                    self._cuda_devices = hello.cuda_devices
                    self._placements.clear()
                    self._next_seat = 0
                    self._seats_for(self._placed(self._groups))
                    loaded = await self._load(process, 0, sweep=True)
                await self._let_write()
                return process, loaded
            except WorkerDiedError as error:
                del self._processes[process]
                if attempt == MAX_FIRST_STARTS:
                    raise _died_while_loading(str(error), attempt) from None
                log.warning("worker 0 of model '%s' %s while loading", self._source.name, error)
        raise AssertionError("unreachable")

    async def _keep(
        self, seat: int, ready: asyncio.Future[None], first: WorkerProcess | None
    ) -> None:
        """Keep one seat taken until cancelled: start, serve, and start again after a loss."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        name = self._source.name
        losses = 0
        process = first
        while True:
            served_s = 0.0
            try:
                if process is None:
                    anew = not self._serving and await self._take_changed_files()
                    if not anew:
                        await self._require_same_files()
                    process = self._new_process(seat)
                    async with self._in_time(process):
                        await process.spawn()
                        loaded = await self._load(process, seat, sweep=False)
                    await (self._let_write() if anew else self._require_same_files())
                    if loaded.spec != self._spec:
                        raise ModelLoadError("its signature is another one than at the first load")
                    if losses:
                        log.info("worker %d of model '%s' is ready again", seat, name)
                if not ready.done():
                    ready.set_result(None)
                ready_at_s = loop.time()
                try:
                    await self._serve(seat, process)
                finally:
                    served_s = loop.time() - ready_at_s
                detail = await asyncio.shield(process.died)
            except WorkerDiedError as error:
                detail = str(error)
            except ModelLoadError as error:
                if not ready.done():
                    ready.set_exception(error)
                    return
                detail = f"could not load the model again: {error}"
            except Exception as error:
                # No processes or descriptors to be had, say: the seat goes on trying.
                log.exception("worker %d of model '%s' could not be started", seat, name)
                detail = f"could not be started: {error}"
            if process is not None:
                await process.stop()
                self._processes.pop(process, None)
                process = None
            losses = self._backoff.losses_after(losses, served_s, self._load_s)
            delay_s = self._backoff.delay_s(losses)
            if not ready.done() and losses >= MAX_FIRST_STARTS:
                ready.set_exception(_died_while_loading(detail, losses))
                return
            if served_s:
                self._listener.worker_state_changed(seat, WorkerState.LOST, detail)
            else:
                self._listener.worker_lost(seat, detail)
            when = f"in {delay_s:.1f} s" if delay_s else "now"
            log.warning(
                "worker %d of model '%s' %s; starting it again %s", seat, name, detail, when
            )
            await asyncio.sleep(delay_s)

    async def _let_write(self) -> None:
        """Leave to the model what changed while it was first loaded: it may keep files of its own
        beside its code. The code itself nobody writes but who changes the model."""
        changed = await asyncio.to_thread(changed_files, self._files)
        if changed:
            paths = ", ".join(path for path, *_ in changed)
            log.warning("model '%s': changed while it was loaded: %s", self._source.name, paths)
        code = self._source.kind.value
        self._files -= {stamp for stamp in changed if not stamp[0].endswith(code)}

    async def _take_changed_files(self) -> bool:
        """Whether files have changed, and are taken as they lie there now: with no worker left
        nobody can answer differently, and something is better than nothing."""
        changed = await asyncio.to_thread(changed_files, self._files)
        if not changed:
            return False
        name, path = self._source.name, changed[0][0]
        log.warning("model '%s': %s changed since it was loaded; it counts now", name, path)
        self._files = await asyncio.to_thread(file_stamps, self._source)
        if self._weights is not None:  # they may be other ones now
            os.close(self._weights)
            self._weights = None
        return True

    async def _require_same_files(self) -> None:
        """Raise `ModelLoadError` if another load would not find what the first one did: workers
        of one model that answer differently are worse than one worker less."""
        changed = await asyncio.to_thread(changed_files, self._files)
        if changed:
            raise ModelLoadError(
                f"{changed[0][0]} changed since the model was loaded; no other worker of it starts "
                "until the model is loaded again"
            )

    async def _serve(self, seat: int, process: WorkerProcess) -> None:
        """Let a worker take batches until it is lost, and say so at once: what it held must not
        wait until its process has been reaped."""
        assert self._listener is not None
        self._serving[seat] = process
        try:
            self._listener.worker_ready(seat)
            await asyncio.shield(process.lost)
        finally:
            del self._serving[seat]
        self._listener.worker_lost(seat, "")

    async def _load(self, process: WorkerProcess, seat: int, *, sweep: bool) -> Loaded:
        return await process.load(
            self._source,
            self._config,
            self._role,
            self._placements[seat],
            sweep=sweep,
            cache=self._cache,
            weights=self._weights_for(self._placements[seat]),
        )

    def _weights_for(self, placement: Placement) -> int | None:
        """The memory file in which workers on the CPU share weights, where there are several."""
        if placement.device != "cpu" or self.devices().count("cpu") < 2:
            return None
        if self._weights is None and sys.platform == "linux":
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            self._weights = os.memfd_create("headrace-weights", flags)
        return self._weights

    @asynccontextmanager
    async def _in_time(self, process: WorkerProcess) -> AsyncIterator[None]:
        """Bounds and times what is awaited inside. Raises `ModelLoadError` if it takes too long."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(self._load_timeout_s):
                yield
            self._load_s = loop.time() - began_s
        except TimeoutError:
            process.kill("it took too long to load the model")
            raise ModelLoadError(
                f"expected the model to load and warm up within {self._load_timeout_s:g} s "
                "(--load-timeout), and ended a worker that had not"
            ) from None

    def _new_process(self, seat: int) -> WorkerProcess:
        listener = self._listener
        assert listener is not None

        def on_state(state: WorkerState) -> None:
            if not self._placements or seat in self._placements:  # it was not released meanwhile
                listener.worker_state_changed(seat, state, "")

        def on_done(batch_id: int, outputs: Sequence[BatchOutput], timing: BatchTiming) -> None:
            listener.batch_completed(batch_id, outputs, timing)

        def on_log(level: int, text: str) -> None:
            log.log(level, "worker %d of model '%s': %s", seat, self._source.name, text)

        name = f"{self._source.name}/{self._source.version}#{seat}"
        process = WorkerProcess(on_state, on_done, listener.batch_failed, on_log, name)
        self._processes[process] = seat
        on_state(WorkerState.STARTING)
        return process


def _died_while_loading(detail: str, times: int) -> ModelLoadError:
    return ModelLoadError(f"the worker {detail} while it loaded the model, {times} times in a row")

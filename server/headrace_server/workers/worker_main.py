"""The worker process: one instance of one model on one device, answering frames on a socket.

Started as `python -m headrace_server.workers.worker_main DESCRIPTOR NAME` (the name is for `ps`),
or run by a process that the nursery forked, which has imported what this needs (`nursery.py`).
One thread reads a frame, does what it says and answers; on a GPU it goes on to the next frame
while another thread waits for the answer. It ends on `Stop`, when the front's end of the socket
closes, when the model cannot be loaded, or when its GPU fails. So that it never outlives the
server, not even in the middle of a batch that hangs, the kernel ends it with its parent (on Linux).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import TYPE_CHECKING

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.awake import AwakeWaiting
from headrace_server.core.cost import Sample
from headrace_server.memory import give_back, keep_what_is_freed
from headrace_server.models.errors import ConfigError, ModelError, described
from headrace_server.models.gpu_options import gpu_options
from headrace_server.models.repository import ModelKind, ModelSource
from headrace_server.models.spec import Role
from headrace_server.workers import frames
from headrace_server.workers.executor import WorkerState
from headrace_server.workers.parents import end_with_the_parent
from headrace_server.workers.slab import ReadableSlab, WritableSlab

if TYPE_CHECKING:  # import torch, which the worker does once it has said that it starts
    from headrace_server.models.loading import LoadedModel
    from headrace_server.workers.cuda_device import CudaDevice
    from headrace_server.workers.path import BatchPath
    from headrace_server.workers.runner import BatchRunner

RECEIVE_BYTES = 1 << 16
MAX_DESCRIPTORS = 8

ENDING = (signal.SIGINT, signal.SIGTERM)

IDLE_S = 5.0
"""Without a message for so long, the worker gives back what batches used. The next large one takes
a tenth longer then."""

log = logging.getLogger("headrace.worker")


def main() -> int:
    """Serve the socket whose descriptor is the first argument; returns the exit status."""
    # Service managers signal every process of a service; only the front decides when workers end.
    # What is ignored stays ignored in whatever a model starts, which then could not be ended.
    for number in ENDING:
        signal.signal(number, _pass_over)
        signal.siginterrupt(number, False)
    os.register_at_fork(after_in_child=_end_as_usual)
    end_with_the_parent()
    # Models may print; standard output belongs to the server.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.setblocking(True)
        session = _Session(connection)
        # The server's own log says how grave it is.
        plain = "%(name)s: %(message)s"
        logging.basicConfig(level=logging.WARNING, format=plain, handlers=[_ToServer(session)])
        logging.getLogger("headrace").setLevel(logging.INFO)
        try:
            return session.serve()
        except (BrokenPipeError, ConnectionResetError):
            return 0  # the server is gone


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Handle a signal by doing nothing."""


def _end_as_usual() -> None:
    """In a process that a model forked, have signals do what they do elsewhere."""
    for number in ENDING:
        if signal.getsignal(number) is _pass_over:
            signal.signal(number, signal.SIG_DFL)


class _Session:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = Lock()  # answers, and what models log, come from more than one thread
        self._device: CudaDevice | None = None
        self._weights: int | None = None
        self._inputs: dict[int, ReadableSlab] = {}
        self._outputs: dict[int, WritableSlab] = {}

    def serve(self) -> int:
        keep_what_is_freed()  # before there is a second thread
        # The slow part of starting from scratch; the front sees this worker as STARTING meanwhile.
        # Of what it makes nothing goes again: not to look for cycles in it, now or ever, saves an
        # eighth.
        gc.disable()
        import torch

        gc.freeze()
        gc.enable()
        self._send(frames.Hello(os.getpid(), str(torch.__version__), torch.cuda.device_count()))
        messages = self._messages()
        load = next(messages, None)
        if not isinstance(load, frames.Load):
            return 0
        try:
            _stay_on(load.pinned_to)
            torch.set_num_threads(load.threads)
            torch.set_num_interop_threads(1)  # batches come one after the other
            config = ModelConfig.FromString(load.config) if load.config else None
            if torch.device(load.device).type == "cuda":
                self._device = _gpu(load.device, config)
            model, path, loaded = self._load(load, config)
        except (ModelError, ConfigError) as error:
            self._send(frames.LoadFailed(frames.sendable(str(error))))
            return 1
        except BaseException as error:  # whatever a model raises, SystemExit as well
            log.error("the model could not be loaded:\n%s", traceback.format_exc())
            self._send(frames.LoadFailed(frames.sendable(described(error))))
            return 1
        give_back()  # what loading needed may be as large as the model, and batches may never be
        self._send(loaded)
        self._run_batches(messages, path)
        model.close()
        return 0

    def _load(
        self, load: frames.Load, config: ModelConfig | None
    ) -> tuple[LoadedModel, BatchPath, frames.Loaded]:
        from headrace_server.models.following import with_following
        from headrace_server.models.loading import load_model
        from headrace_server.models.warmup import warm_up
        from headrace_server.workers.runner import BatchRunner
        from headrace_server.workers.sweep_cache import known_sweep

        kind = ModelKind(load.kind)
        source = ModelSource(load.model, load.version, Path(load.file), kind, load.pickle)
        self._send(frames.Progress(WorkerState.LOADING.value))
        role, cache = Role(load.role), Path(load.cache) if load.cache else None
        if cache is not None:  # what is compiled serves other workers and later loads
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
        model = load_model(source, config, load.device, role, self._weights)
        if self._weights is not None:
            os.close(self._weights)  # what is mapped stays
        self._send(frames.Progress(WorkerState.WARMING_UP.value))
        warm_up(model, config, source)
        spec = with_following(model) if load.sweep else model.spec
        graphs = self._device is not None and gpu_options(config).graphs
        samples: tuple[Sample, ...] = ()
        if load.sweep or graphs:  # which batches to capture is up to what they cost
            samples = known_sweep(model, source, config, role, cache)
        if graphs:
            from headrace_server.workers.cuda_graphs import cuda_capture, with_graphs

            model, samples = with_graphs(model, samples, cuda_capture())
        return model, self._path(BatchRunner(model)), frames.Loaded(spec, samples)

    def _run_batches(self, messages: Iterator[frames.ToWorker], path: BatchPath) -> None:
        for message in messages:
            match message:
                case frames.RunBatch():
                    self._run(path, message)
                case frames.Stop():
                    break
                case frames.Load():
                    raise frames.FrameError("Load came twice")
        path.close()
        for read in self._inputs.values():
            read.close()
        for written in self._outputs.values():
            written.close()

    def _path(self, runner: BatchRunner) -> BatchPath:
        if self._device is None:
            from headrace_server.workers.path import DirectPath

            return DirectPath(runner, self._send)
        from headrace_server.workers.pipeline import PipelinedPath

        return PipelinedPath(runner, self._device, self._send, _end_with_the_device)

    def _run(self, path: BatchPath, message: frames.RunBatch) -> None:
        def reserve(nbytes: int) -> memoryview:
            slab = self._outputs.get(message.slab)
            if slab is None:
                slab = self._outputs[message.slab] = WritableSlab(self._device)
            descriptor = slab.reserve(nbytes)
            if descriptor is not None:
                self._send(frames.Slab(message.slab, slab.nbytes), descriptor)
            return slab.view

        memory = self._inputs[message.slab].view if message.slab in self._inputs else _NOTHING
        path.submit(message, memory, reserve)

    def log(self, level: int, text: str) -> None:
        """Put a line into the server's log."""
        with contextlib.suppress(OSError):  # the server is gone, and so is its log
            self._send(frames.Log(level, frames.sendable(text)))

    def _send(self, message: frames.FromWorker, descriptor: int | None = None) -> None:
        data = frames.encode(message)
        with self._sending:
            if descriptor is None:
                self._connection.sendall(data)
                return
            try:
                sent = socket.send_fds(self._connection, [data], [descriptor])
                self._connection.sendall(data[sent:])
            finally:
                os.close(descriptor)

    def _messages(self) -> Iterator[frames.ToWorker]:
        """Messages until the front closes; slabs are mapped on the way."""
        splitter = frames.FrameSplitter()
        descriptors: list[int] = []
        # In `recv` a sleeping thread would also be woken when the other side has read an answer.
        readable = select.poll()
        readable.register(self._connection, select.POLLIN)
        waiting = AwakeWaiting()

        def look(timeout: float | None) -> bool:
            return bool(readable.poll(None if timeout is None else timeout * 1e3))

        while True:
            if not waiting.wait(look, IDLE_S):
                give_back()
                waiting.wait(look, None)
            data, received, _, _ = socket.recv_fds(self._connection, RECEIVE_BYTES, MAX_DESCRIPTORS)
            if not data:
                return
            descriptors += received
            for body in splitter.feed(data):
                message = frames.decode_to_worker(body)
                if isinstance(message, frames.Slab):
                    old = self._inputs.pop(message.index, None)
                    if old is not None:
                        old.close()
                    self._inputs[message.index] = ReadableSlab(
                        descriptors.pop(0), message.nbytes, self._device
                    )
                    continue
                if isinstance(message, frames.Load) and message.shares_weights:
                    self._weights = descriptors.pop(0)
                yield message


def _stay_on(cores: tuple[int, ...]) -> None:
    """Run on these cores alone, if any are named: this thread, and what libraries have started."""
    if cores:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)


def _gpu(device: str, config: ModelConfig | None) -> CudaDevice:
    from headrace_server.workers.cuda_device import CudaDevice

    try:
        return CudaDevice(device, gpu_options(config))
    except RuntimeError as error:  # torch's, for whatever is wrong with it
        raise ModelError(f"{device} cannot be used: {error}") from error


def _end_with_the_device(error: BaseException) -> None:
    """End at once, as a crash would: no further call on a broken device succeeds, and the server
    knows what to do about the batches of a worker that is gone."""
    log.error("the GPU cannot be relied on any more, ending this worker: %s", error)
    os._exit(1)


class _ToServer(logging.Handler):
    """Hands every record to the front, whose log has the operator's format and the model's name."""

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self._session = session

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # a call whose arguments do not fit its format, say
            self.handleError(record)
        else:
            self._session.log(record.levelno, text)


_NOTHING = memoryview(b"")

if __name__ == "__main__":
    sys.exit(main())

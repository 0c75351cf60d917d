"""Where workers come from: a process that has imported torch forks them, so none has to wait.

Importing torch and what loads models takes seconds and hundreds of megabytes. The nursery
(`nursery_main.py`) does it once per server, beside the rest of its start; a forked worker runs
after milliseconds, and shares with the others what none of them writes to. It is a process apart
because one that forks must have no threads, and the server has many.

A worker is made a child of the server, not of the nursery, though the nursery forks it (`parents`).
So the kernel ends it with the server as ever, the server waits for it and learns how it ended, and
a nursery that dies takes no worker along: the next birth starts another. multiprocessing's
forkserver would be less code, but not by much, and its processes stay children of the fork server:
their status passes through it and is lost with it, and nothing ends one that hangs once the server
was killed.

Where the kernel cannot do that (not Linux, or before 5.3) workers start from scratch.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import subprocess
import sys
from contextlib import suppress
from threading import Lock, Thread

from headrace_server.workers.child import AdoptedChild, Child, StartedChild, how_it_ended, readable
from headrace_server.workers.parents import Adopting

log = logging.getLogger("headrace.workers")

ONE_THREAD_EACH = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
"""For libraries that would take every core for themselves: numpy's, tokenizers. The operator's own
environment goes before. Torch is told its number of threads once the worker's place is known."""

WORKER_MAIN = "headrace_server.workers.worker_main"
NURSERY_MAIN = "headrace_server.workers.nursery_main"

ROOM_FOR_NAMES = 320
"""Bytes in the nursery's command line that become its workers' names: a file's name, and some."""

FULL_S = 0.02
"""Until the nursery is asked again that has some hundred births to do already."""


class NotBornError(Exception):
    """The nursery ended before it had forked this worker, or could not."""


class Nursery:
    """The server's side of the nursery: started when first needed, and again after its loss.

    Its environment is that of its start; so is its workers'. Safe in several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._adopting = Adopting()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """The process id of the latest one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Have it import while there is something else to do; not necessary."""
        with self._lock:
            if self._control is None:
                self._start()

    async def fork(self, connection: socket.socket, name: str) -> Child:
        """A new worker that serves the connection, which the caller may close then.

        Cancelled, it has the worker ended that comes all the same.

        Raises:
            NotBornError: there is none.
            OSError: of what this process needs itself.
        """
        ours = connection.dup()
        birth = asyncio.create_task(self._birth(ours, name))
        birth.add_done_callback(lambda _: ours.close())  # also of one that never ran
        try:
            return await asyncio.shield(birth)
        except asyncio.CancelledError:
            ending = asyncio.create_task(_end(birth))
            self._unwanted.add(ending)
            ending.add_done_callback(self._unwanted.discard)
            raise

    def stop(self) -> None:
        """End it, and wait until it has."""
        with self._lock:
            control, self._control = self._control, None
        if control is not None and self._process is not None:
            control.close()
            self._process.kill()
            self._process.wait()

    async def _birth(self, connection: socket.socket, name: str) -> Child:
        heard, announced = os.pipe()
        try:
            with self._adopting:
                try:
                    encoded = name.encode()[: ROOM_FOR_NAMES - 1]
                    descriptors = [connection.fileno(), announced]
                    while not self._ask(encoded, descriptors):  # noqa: ASYNC110
                        await asyncio.sleep(FULL_S)
                finally:
                    os.close(announced)
                await readable(heard)
                pid = os.read(heard, 16)
            if not pid:
                raise NotBornError("could not be forked")
            return AdoptedChild(int(pid))
        finally:
            os.close(heard)

    def _ask(self, name: bytes, descriptors: list[int]) -> bool:
        """Ask for a worker; False if there is no room for the question."""
        with self._lock, suppress(BlockingIOError):
            try:
                if self._control is not None:
                    socket.send_fds(self._control, [name], descriptors)
                    return True
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended
            socket.send_fds(self._start(), [name], descriptors)
            return True
        return False

    def _start(self) -> socket.socket:
        if self._control is None:
            atexit.register(self.stop)
        else:
            self._control.close()
        self._control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                (*_python(NURSERY_MAIN), str(theirs.fileno()), " " * ROOM_FOR_NAMES),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**ONE_THREAD_EACH, **os.environ},
                # Signals to the server's process group are the front's business alone.
                start_new_session=True,
            )
        Thread(target=self._watch, args=(self._process,), daemon=True).start()
        return self._control

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if self._control is not None:  # it was not stopped
            log.warning("the nursery %s; the next worker starts another", how_it_ended(status))
        # Of a birth that its end broke off there may be processes left, in its group.
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-process.pid, 0)


async def _end(birth: asyncio.Task[Child]) -> None:
    with suppress(NotBornError, OSError):
        child = await birth
        child.kill()
        await child.wait()


def _python(module: str) -> tuple[str, ...]:
    # -P: what lies in the current directory is none of the module's business.
    return sys.executable, "-P", "-m", module


def _can_fork() -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


CAN_FORK = _can_fork()

NURSERY = Nursery()
"""Of this process."""


def prepare() -> None:
    """Start what the first worker will wait for, if there is any such thing."""
    if CAN_FORK:
        NURSERY.start()


async def start_worker(connection: socket.socket, name: str) -> Child:
    """Start a process that runs `worker_main`, forked where possible. Raises as `Nursery.fork`.

    Args:
        connection: what it serves; the caller closes its own copy.
        name: for `ps`.
    """
    if CAN_FORK:
        return await NURSERY.fork(connection, name)
    process = await asyncio.create_subprocess_exec(
        *_python(WORKER_MAIN),
        str(connection.fileno()),
        name,
        pass_fds=[connection.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        env={**ONE_THREAD_EACH, **os.environ},
        start_new_session=True,
    )
    return StartedChild(process)

"""The nursery's process: imports torch and what loads models, then forks workers on request.

Started as `python -m headrace_server.workers.nursery_main DESCRIPTOR ROOM` by `nursery.py`. A
request on the socket is a worker's name, with two descriptors: the socket that the worker serves,
and a pipe that gets its process id. The socket's end is the nursery's, too.

A fork copies one thread and every lock. So nothing here starts a thread, touches a GPU or computes;
should there be a second thread after all (somebody's `sitecustomize`, OPENBLAS_NUM_THREADS=4), that
is logged as an error, and the forked process executes `worker_main` from scratch, which is slow and
safe. What a fresh process has of its own, a forked one gets anew: session, name, seeds, arguments.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import runpy
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from headrace_server.workers import frames
from headrace_server.workers.nursery import ROOM_FOR_NAMES, WORKER_MAIN
from headrace_server.workers.parents import end_with_the_parent, fork_for_the_parent

IMPORTED = (
    "headrace_server.models.following",
    "headrace_server.workers.path",
    "headrace_server.workers.runner",
    "headrace_server.workers.sweep_cache",
    # What torch itself imports when it loads an exported program: half as much again.
    "torch.export._trace",
)

CACHE = "TORCHINDUCTOR_CACHE_DIR"

THREADS = "/proc/self/task"


def main() -> int:
    """Fork until the socket closes; returns the exit status, in workers theirs."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_the_parent()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        # Of what imports make nothing goes again; and what is frozen no collection writes to.
        gc.disable()
        _import()
        gc.collect()
        gc.freeze()
        while True:
            name, descriptors, *_ = socket.recv_fds(
                control, ROOM_FOR_NAMES, 2, socket.MSG_CMSG_CLOEXEC
            )
            if not name:
                return 0
            connection, announced = descriptors
            alone = _is_alone(connection)
            try:
                forked = fork_for_the_parent()
            except OSError as error:
                print(f"headrace: no process for worker {name.decode()}: {error}", file=sys.stderr)
                forked = False
            if forked:
                break
            os.close(connection)
            os.close(announced)
    return _become_worker(connection, announced, name.decode(errors="ignore"), alone=alone)


def _import() -> None:
    # Torch makes the directory of its compiler's cache as early as that; workers name another.
    named = CACHE in os.environ
    os.environ.setdefault(CACHE, tempfile.gettempdir())
    for module in IMPORTED:
        with suppress(Exception):  # a worker that misses it says so
            importlib.import_module(module)
    if not named:
        del os.environ[CACHE]


def _is_alone(connection: int) -> bool:
    """Whether there is one thread; the server's log says if not."""
    threads = len(os.listdir(THREADS))
    if threads > 1:
        text = f"started from scratch: its nursery has {threads} threads where there must be one"
        with socket.socket(fileno=os.dup(connection)) as told, suppress(OSError):
            told.sendall(frames.encode(frames.Log(logging.ERROR, text)))
    return threads == 1


def _become_worker(connection: int, announced: int, name: str, *, alone: bool) -> int:
    """Run `worker_main` as a fresh process would; returns what it returns, or does not return."""
    os.setsid()  # first: what ends in the nursery's group is waited for by nobody in particular
    try:
        os.write(announced, b"%d" % os.getpid())
    except BrokenPipeError:
        return 0  # the server is gone
    os.close(announced)
    arguments = [sys.executable, "-P", "-m", WORKER_MAIN, str(connection), name]
    if not alone:
        os.set_inheritable(connection, True)
        os.execv(sys.executable, arguments)
    _show(arguments)
    sys.orig_argv = arguments
    sys.argv = ["", *arguments[4:]]
    _seed()
    importlib.invalidate_caches()
    runpy.run_module(WORKER_MAIN, run_name="__main__", alter_sys=True)
    return 0


def _show(arguments: list[str]) -> None:
    """Have `ps` show these arguments: they go where the kernel keeps those of the start."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    first, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc_pid_stat(5)
    text = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
    ctypes.memmove(first, text[: end - first - 1].ljust(end - first, b"\0"), end - first)


def _seed() -> None:
    """Give generators seeds of their own; Python seeds `random` by itself."""
    import numpy as np
    import torch

    np.random.seed()
    torch.default_generator.seed()


if __name__ == "__main__":
    sys.exit(main())

"""Who is whose parent, on Linux: processes that end with theirs, and processes that change it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from threading import Lock
from types import TracebackType

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""Of prctl(2)."""


def end_with_the_parent() -> None:
    """Have the kernel end this process once its parent has. Nothing happens but on Linux.

    Of a parent that ended before this, a socket must tell.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def fork_for_the_parent() -> bool:
    """Fork a process whose parent is not this process but its parent, while that one is `Adopting`.

    A process in between forks it and ends: so nobody's death but the adopter's concerns it, and
    who waits for it learns its status at first hand. Both are in the process group of the caller.

    Returns:
        Whether this is the new process.

    Raises:
        OSError: no process was to be had, as far as the caller can tell: a lack that only the one
            in between met shows as a new process that never comes.
    """
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    try:
        itself = os.pidfd_open(os.getpid())
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    select.select((itself,), (), ())  # whose process has ended has given its children away
    os.close(itself)
    return True


class Adopting:
    """A context, entered any number of times at once, in which this process adopts what its
    descendants leave behind. Not always: orphans that models leave are not this process's."""

    def __init__(self) -> None:
        self._lock = Lock()  # event loops may run in several threads
        self._entered = 0

    def __enter__(self) -> None:
        self._change(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._entered += by
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(self._entered > 0), 0, 0, 0)

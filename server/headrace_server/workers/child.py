"""A child process that was not started by asyncio, awaited all the same."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Protocol


class Child(Protocol):
    """What a worker process needs of its handle; `asyncio.subprocess.Process` has it, too."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal, once it was waited for."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to one that was not waited for yet."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended; returns `returncode`."""
        ...


class AdoptedChild:
    """A child known by its process id alone (Linux). `wait` once."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)

    def kill(self) -> None:
        """See `Child.kill`."""
        os.kill(self.pid, signal.SIGKILL)  # an id is not given away before it was waited for

    async def wait(self) -> int:
        """See `Child.wait`."""
        try:
            await readable(self._descriptor)
        finally:
            os.close(self._descriptor)
        try:
            _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222 - it has ended
        except ChildProcessError:  # SIGCHLD is ignored, so the kernel keeps no status
            self.returncode = 255
        else:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


async def readable(descriptor: int) -> None:
    """Wait until there is something to read, or an end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def how_it_ended(status: int) -> str:
    """In words, for a `returncode`."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"

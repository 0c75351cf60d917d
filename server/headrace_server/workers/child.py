"""Child processes that lead a process group, ended with all that they started themselves."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Protocol


class Child(Protocol):
    """What a worker process needs of its handle."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal, once it was waited for."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to one that was not waited for yet, and to its process group."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended; returns `returncode`."""
        ...


class AdoptedChild:
    """A child known by its process id alone (Linux). `wait` once.

    However it ends, its process group ends with it: nobody else would end what it started.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)

    def kill(self) -> None:
        """See `Child.kill`."""
        _kill_group(self.pid)  # an id is not given away before it was waited for

    async def wait(self) -> int:
        """See `Child.wait`."""
        try:
            await readable(self._descriptor)
        finally:
            os.close(self._descriptor)
        self.returncode = _reaped(self.pid)
        return self.returncode


class StartedChild:
    """A child that asyncio started. What it started itself ends when it is killed, but not when it
    ends otherwise: asyncio has waited for it by then, and its id may be somebody else's."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """See `Child.pid`."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """See `Child.returncode`."""
        return self._process.returncode

    def kill(self) -> None:
        """See `Child.kill`."""
        _kill_group(self.pid)

    async def wait(self) -> int:
        """See `Child.wait`."""
        return await self._process.wait()


def _reaped(leader: int) -> int:
    """Kill what is left of a group whose leader has ended, and wait for the leader; returns its
    exit status, or minus the signal."""
    try:
        os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)  # its id is still its own, or raises
        _kill_group(leader)
        _, status = os.waitpid(leader, 0)
    except ChildProcessError:  # SIGCHLD is ignored, so the kernel keeps no status
        return 255
    return os.waitstatus_to_exitcode(status)


def _kill_group(leader: int) -> None:
    for kill in (os.killpg, os.kill):  # should it lead no group, itself at least
        with suppress(ProcessLookupError):
            kill(leader, signal.SIGKILL)


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

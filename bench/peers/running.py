"""A peer that runs: started with one model and setting, checked, measured, stopped."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.peers.environments import UnavailableError
from bench.peers.group import ProcessGroup
from bench.peers.peer import Peer, Setting, free_port
from bench.peers.shots import FailedRunError
from bench.peers.wire import NoAnswerError
from bench.peers.workloads import Workload, WrongAnswerError
from bench.processes import Usage, memory_bytes, usage

START_TIMEOUT_S = 60.0
SHARED_MEMORY = Path("/dev/shm")


class RunningPeer(AbstractContextManager["RunningPeer"]):
    """From started, ready and found to answer rightly, to stopped.

    Raises, when entered:
        UnavailableError: it ended, did not get ready in time, or answers wrongly; says which.
    """

    def __init__(self, peer: Peer, workload: Workload, setting: Setting) -> None:
        self.peer, self.workload, self.setting = peer, workload, setting
        self._directory: tempfile.TemporaryDirectory[str]
        self._group: ProcessGroup | None = None
        self._regions = ""
        self.address = ""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="peers-")
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        try:
            directory = Path(self._directory.name)
            launch = self.peer.launch(self.workload, self.setting, port, directory)
            self._regions = launch.regions
            self._group = ProcessGroup(launch.argv, launch.environment, directory)
            self._await_answer()
            self.workload.check(self.peer.wire, self.address, echoes=self.peer.echoes)
        except (NoAnswerError, WrongAnswerError, OSError) as error:
            said = self._group.last_words() if self._group else ""
            self.stop()
            raise UnavailableError(f"{error}{telling(said)}\n{said}".rstrip()) from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and all that it started."""
        if self._group is not None:
            self.resume()  # or it would not see that it is asked to end
            self._group.stop()
        for region in SHARED_MEMORY.glob(f"{self._regions}*") if self._regions else ():
            region.unlink(missing_ok=True)
        self._directory.cleanup()

    def revive(self) -> None:
        """Start it again where it has ended by itself: its next turn is another one. Raises
        `UnavailableError`."""
        if self._group is not None and self._group.status is not None:
            self.stop()
            self.__enter__()

    def pause(self) -> None:
        """Stop all its processes if it is one that polls, so that it takes no CPU time from the one
        that is measured. (Others are left alone: Triton once crashed after a minute of this.)"""
        if self.peer.polls:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._group is not None
        if self._group.status is None:
            for pid in usage(self._group.pid).by_pid:
                os.kill(pid, number)

    def usage(self) -> Usage:
        """CPU time of all its processes. Raises `FailedRunError` once it has ended."""
        assert self._group is not None
        if self._group.status is not None:
            status = self._group.status
            raise FailedRunError(
                f"the server ended with status {status}\n{self._group.last_words()}"
            )
        return usage(self._group.pid)

    def memory_bytes(self) -> int:
        """Memory of all its processes, what they share counted once."""
        assert self._group is not None
        return memory_bytes(self._group.pid)

    def _await_answer(self) -> None:
        assert self._group is not None
        body = self.peer.wire.body(self.workload.name, self.workload.given, self.workload.inputs[0])
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.peer.wire.post(self.address, body)
            except NoAnswerError as error:
                if self._group.status is not None:
                    raise NoAnswerError(f"ended with status {self._group.status}") from None
                if time.monotonic() > deadline_s:
                    raise NoAnswerError(f"not ready in {START_TIMEOUT_S:.0f} s: {error}") from None
                time.sleep(0.1)
            else:
                return


def telling(said: str) -> str:
    """The last line about an error, to be put behind what is known; nothing if there is none."""
    lines = [line.strip() for line in said.splitlines() if "error" in line.lower()]
    return f": {lines[-1]}" if lines else ""

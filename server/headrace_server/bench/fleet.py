"""The generator processes as one: started together, told the same, their reports in a row."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from headrace_server.bench.orders import Begin, Ready, Setup, StepReport, Stop, WindowReport

START_TIMEOUT_S = 60.0
GRACE_S = 5.0
"""How long a process may take to end by itself once its connection is closed."""

Wire: TypeAlias = "Connection[Setup | Begin | Stop, Ready | WindowReport | StepReport]"
PROCESS = (sys.executable, "-P", "-m", "headrace_server.bench.process")
"""Starts one; -P: what lies in the current directory is none of its modules."""

Report = TypeVar("Report", Ready, WindowReport, StepReport)


class GeneratorLostError(Exception):
    """A generator process ended, or fell silent; what it had to say is on standard error."""


class Fleet:
    """Generator processes, from entered to left. They follow no signal of the terminal: whoever
    uses the fleet decides what Ctrl-C means. `command` starts one of them, and is given the
    descriptor of its connection.

    Raises:
        GeneratorLostError: from any method, when a process is not there any more.
    """

    def __init__(self, setups: Sequence[Setup], command: Sequence[str] = PROCESS) -> None:
        self._setups = setups
        self._command = command
        self._processes: list[subprocess.Popen[bytes]] = []
        self._wires: list[Wire] = []

    def __enter__(self) -> Self:
        try:
            for setup in self._setups:
                self._start(setup)
            self.collect(Ready, START_TIMEOUT_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def pids(self) -> list[int]:
        """The process ids, in the order of the setups."""
        return [process.pid for process in self._processes]

    def tell(self, order: Begin | Stop) -> None:
        """The same to each process."""
        for index, wire in enumerate(self._wires):
            try:
                wire.send(order)
            except OSError:
                raise self._lost(index) from None

    def collect(self, kind: type[Report], timeout_s: float) -> list[Report]:
        """The next report of that kind from each process; others that come first are dropped."""
        deadline_s = time.monotonic() + timeout_s
        reports: list[Report] = []
        for index, wire in enumerate(self._wires):
            report: object = None
            while not isinstance(report, kind):
                try:
                    if not wire.poll(max(0.0, deadline_s - time.monotonic())):
                        raise self._lost(index)
                    report = wire.recv()
                except (EOFError, OSError):
                    raise self._lost(index) from None
            reports.append(report)
        return reports

    def _start(self, setup: Setup) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            self._wires.append(ours)
            self._processes.append(
                subprocess.Popen(
                    [*self._command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        try:
            ours.send(setup)
        except OSError:
            raise self._lost(len(self._wires) - 1) from None

    def _lost(self, index: int) -> GeneratorLostError:
        process = self._processes[index]
        try:
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return GeneratorLostError(f"generator process {process.pid} does not answer")
        return GeneratorLostError(f"generator process {process.pid} ended with status {status}")

    def _end(self) -> None:
        for wire in self._wires:
            wire.close()
        for process in self._processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

"""The echo server as a process of its own, so that what it holds and burns can be told."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

from bench.processes import resident_bytes

from wire import echo_server
from wire.echo_server import Limits

ALARMS = ("Traceback", "never retrieved", "never awaited", "Error:")
"""In what the server logs: nothing that a client sends is an error of the server."""


class EchoProcess:
    """From listening to ended; use as a context manager. Leaving it asserts that the server lived
    until then, ended as told, and logged no error of its own."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        flags = [f"--{name}={value}" for name, value in vars(self.limits).items()]
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - read when it has ended
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", echo_server.__file__, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, self.log()
        self.address = f"127.0.0.1:{port}"
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        alive = self._process.poll() is None
        try:
            self.terminate()
            self._process.wait(self.limits.grace_s + 20.0)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        log = self.log()
        self._log.close()
        if error is None:
            assert alive or self.terminated, f"the server ended by itself:\n{log}"
            assert self._process.returncode == 0, log
            assert not any(alarm in log for alarm in ALARMS), log

    terminated = False

    def terminate(self) -> None:
        """Begin its graceful end, unless that was begun before."""
        if not self.terminated and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self.terminated = True

    def log(self) -> str:
        """What it wrote to standard error so far."""
        self._log.seek(0)
        return self._log.read()

    @property
    def resident_bytes(self) -> int:
        """Its resident memory now."""
        return resident_bytes(self.pid)

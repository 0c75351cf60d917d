"""Start the real server as a separate process: for tests, benchmarks and demonstrations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


class ServerProcess:
    """`headrace serve` on free ports of the loopback interface, from ready to stopped.

    Use as a context manager; entering blocks until every model is ready or known to be broken.
    `log` holds the server's log lines (JSON objects, one per line) as they come.

    Raises:
        RuntimeError: the server ended, or was not ready within `START_TIMEOUT_S`, with its log.
    """

    def __init__(
        self, repository: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "headrace_server.cli", "serve", str(repository)),
            *("--grpc-port", "0", "--metrics-port", "0", "--log-format", "json"),
            *flags,
        ]
        self._scheme = "https" if "--tls-cert" in flags else "http"
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self.log: list[str] = []
        self.grpc_address = ""
        self.http_address = ""
        self.metrics_url = ""

    @property
    def pid(self) -> int:
        """The process id of the front."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start and wait until the server says that it is ready."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_TIMEOUT_S) or not self.grpc_address:
            self.kill()
            raise RuntimeError("the server did not become ready:\n" + "".join(self.log[-50:]))
        return self

    def stop(self) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._end(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(
                f"the server did not stop within {STOP_TIMEOUT_S} s:\n" + "".join(self.log[-50:])
            ) from None

    def wait(self) -> int:
        """Wait until it has ended by itself; returns the exit status."""
        return self._end(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL the front; its workers end by themselves."""
        assert self._process is not None
        self._process.kill()
        self._end(STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _end(self, timeout_s: float) -> int:
        assert self._process is not None
        status = self._process.wait(timeout_s)
        if self._reader is not None:
            self._reader.join(timeout_s)
        return status

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.log.append(line)
                if '"server ready"' in line:
                    event = json.loads(line)
                    self.grpc_address = event["grpc"]
                    self.http_address = event.get("http", "")
                    self.metrics_url = f"{self._scheme}://{event['metrics']}/metrics"
                    self._ready.set()
        self._ready.set()  # ended: whoever waits shall look

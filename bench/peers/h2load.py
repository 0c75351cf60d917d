"""Load from h2load, a generator in C that costs a fraction of what any of the servers does.

It sends one request over and over and looks at the HTTP status only.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.peers.environments import UnavailableError
from bench.peers.running import RunningPeer
from bench.peers.shared_memory import SharedRequest
from bench.peers.shots import FailedRunError, Shot

CALIBRATION_S = 0.3
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class H2Load:
    """`clients` connections with `streams` requests in flight on each; over HTTP/1.1, which has
    one on each connection, so many more connections.

    With `shared_memory` the tensors lie in memory that the server was told of (gRPC only).
    """

    clients: int
    streams: int
    shared_memory: bool = False

    def __str__(self) -> str:
        return f"h2load, {self.clients} x {self.streams} in flight"

    def require(self) -> None:
        """Raises `UnavailableError` where there is no h2load."""
        if shutil.which("h2load") is None:
            raise UnavailableError("expected h2load on the path: the package nghttp2-client has it")

    def __call__(self, server: RunningPeer, seconds: float) -> Shot:
        """Load for about `seconds`, after a short warm-up that says how many requests these are.

        Raises:
            FailedRunError: a request was not answered with success.
        """
        wire, workload = server.peer.wire, server.workload
        sharing = SharedRequest(server.address, workload) if self.shared_memory else None
        with sharing or nullcontext(), tempfile.TemporaryDirectory() as directory:
            body, log = Path(directory) / "body", Path(directory) / "log"
            data = (
                sharing.body
                if sharing
                else wire.body(workload.name, workload.given, workload.inputs[0])
            )
            if wire.name == "gRPC":
                data = struct.pack(">BI", 0, len(data)) + data
            body.write_bytes(data)
            in_flight = self.clients * self.streams
            few = 4 * in_flight
            rate = self._run(server, body, log, few)
            rate = self._run(server, body, log, max(few, round(rate * CALIBRATION_S)))
            requests = max(few, round(rate * seconds))
            before = server.usage()
            rate = self._run(server, body, log, requests)
            cpu_s = server.usage().since(before)
            p50, p99 = np.percentile(np.loadtxt(log, usecols=2, ndmin=1), [50, 99])
            if sharing:
                sharing.check()
        return Shot(rate, cpu_s / requests * 1e6, p50 / 1e3, p99 / 1e3, requests)

    def _run(self, server: RunningPeer, body: Path, log: Path, requests: int) -> float:
        log.unlink(missing_ok=True)  # it appends
        command = self.command(server, body, requests)
        try:
            output = subprocess.run(
                [*command, f"--log-file={log}"],
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            ).stdout
        except subprocess.TimeoutExpired:
            raise FailedRunError(f"h2load did not end within {TIMEOUT_S:.0f} s") from None
        return rate_of(output, requests)

    def command(self, server: RunningPeer, body: Path, requests: int) -> list[str]:
        """The command line for so many requests."""
        wire = server.peer.wire
        shape = ["-c", str(self.clients), "-m", str(self.streams)]
        if wire.name != "gRPC":
            shape = ["--h1", "-c", str(self.clients * self.streams)]
        headers = [word for header in wire.headers for word in ("-H", header)]
        url = f"http://{server.address}{wire.path}"
        return ["h2load", *shape, "-n", str(requests), "-d", str(body), *headers, url]


def rate_of(output: str, requests: int) -> float:
    """Requests per second, from what h2load prints.

    Raises:
        FailedRunError: it does not say that all of them succeeded.
    """
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    done = re.search(r"(\d+) succeeded", output)
    if rate is None or done is None or int(done[1]) != requests:
        said = re.search(r"requests: .*", output)
        raise FailedRunError(
            f"expected {requests} requests to succeed, h2load says: {said[0] if said else output}"
        )
    return float(rate[1])

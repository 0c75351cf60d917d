"""Fronts of the real command: what they share with nobody, and what is left when all is over."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from command_line import refusal
from headrace import Client
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from wire.peer import PREFACE, SETTINGS, frame
from worker_processes import alive, children_of, command_of
from written_models import write_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="fronts need Linux"),
]

SECONDS = 60.0
CONNECTIONS = 16
MAX_CONCURRENT_STREAMS = 3
"""Its number among the settings of HTTP/2."""
AFFINE = """
    from headrace_server import Model, TensorSpec

    class Affine(Model):
        inputs = [TensorSpec("x", "INT64", [3])]
        outputs = [TensorSpec("y", "INT64", [3])]

        def forward(self, x):
            return 2 * x + 1
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """For temporary files of the server; its path is short, as that of a socket must be."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fronts-") as path:
        yield Path(path)


@pytest.fixture
def server(tmp_path: Path, directory: Path) -> Iterator[ServerProcess]:
    write_model(tmp_path, "affine", AFFINE)
    environment = {"TMPDIR": str(directory)}
    with ServerProcess(tmp_path, "--fronts", "2", environment=environment) as server:
        yield server


def until(true: Callable[[], bool]) -> None:
    by = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < by
        time.sleep(0.02)


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def test_one_server_to_its_callers_and_to_its_operator(
    server: ServerProcess, directory: Path, tmp_path: Path
) -> None:
    for value in range(CONNECTIONS):
        with Client(server.grpc_address) as client:
            answer = client.infer("affine", {"x": np.array([[value, 0, 0]])})
            assert answer["y"].tolist() == [[2 * value + 1, 1, 1]]
            (statistics,) = client.statistics("affine")
            assert statistics.success.count == value + 1
    answered = 'headrace_requests_total{model="affine",outcome="ok",version="1"}'
    assert metric(server, answered) == CONNECTIONS
    for number in ("1", "2"):
        line = refusal(
            *(1, "serve", str(tmp_path), "--metrics-port", "0", "--fronts", number),
            *("--grpc-port", server.grpc_address.rpartition(":")[2]),
        )
        assert f"cannot listen for gRPC on {server.grpc_address}" in line
    processes = children_of(server.pid)
    assert len(processes) == 4  # with a worker and what forked it
    fronts = [pid for pid in processes if "front_main" in command_of(pid)]
    assert len(fronts) == 2
    for pid in (server.pid, *fronts):
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert server.stop() == 0
    assert not any(map(alive, processes))
    assert os.listdir(directory) == []


def test_callers_are_limited_where_they_connect_and_not_behind_that(
    server: ServerProcess, directory: Path
) -> None:
    host, _, port = server.grpc_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        assert settings_of(connection)[MAX_CONCURRENT_STREAMS] == 8_192
    (private,) = directory.glob("*/engine")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(private))
        assert MAX_CONCURRENT_STREAMS not in settings_of(connection)


def settings_of(connection: socket.socket) -> dict[int, int]:
    """What an HTTP/2 server says of itself, first of all (RFC 9113, 6.5)."""
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    with connection.makefile("rb") as stream:
        head = stream.read(9)
        assert head[3] == SETTINGS
        return dict(struct.iter_unpack(">HI", stream.read(int.from_bytes(head[:3]))))


def test_fronts_of_a_server_that_is_killed_end_and_leave_nothing(
    server: ServerProcess, directory: Path
) -> None:
    before = shared_memory()
    processes = children_of(server.pid)
    assert len(os.listdir(directory)) == 1
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, processes)))
    assert os.listdir(directory) == []
    assert shared_memory() <= before

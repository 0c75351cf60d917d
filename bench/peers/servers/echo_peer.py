"""The least a unary call can cost in Python: `bench/echo.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.peers.environments import ROOT
from bench.peers.peer import Launch, Setting
from bench.peers.wire import Grpc
from bench.peers.workloads import Workload


class EchoPeer:
    name = "bare echo"
    wire = Grpc()
    echoes = True
    polls = False

    @property
    def version(self) -> str:
        return f"grpc.aio {version('grpcio')}"

    def install(self) -> None:
        """Is there."""

    def settings(self, workload: str) -> Sequence[Setting]:
        return [Setting(0, note="no model")]

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        argv = [sys.executable, "-m", "bench.echo", "--port", str(port)]
        return Launch(argv, {"PYTHONPATH": str(ROOT)})

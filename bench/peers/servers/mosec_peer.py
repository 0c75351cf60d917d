"""mosec, with raw tensors in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import Environment
from bench.peers.peer import SERVED, Launch, Setting, order
from bench.peers.wire import RawHttp
from bench.peers.workloads import Workload


class MosecPeer:
    name = "mosec"
    wire = RawHttp("/inference")
    echoes = False
    polls = False

    def __init__(self) -> None:
        packages = ("mosec", "numpy", "safetensors", "tokenizers", "torch")
        self.environment = Environment("mosec", packages)

    @property
    def version(self) -> str:
        return self.environment.version

    def install(self) -> None:
        self.environment.install()

    def settings(self, workload: str) -> Sequence[Setting]:
        # Whole milliseconds only, and at least one where it may batch.
        if workload == "sentences":
            return [Setting(1), *(Setting(rows, 1.0) for rows in (4, 8, 16))]
        return [Setting(32, 1.0), Setting(1), Setting(64, 1.0), Setting(16, 1.0)]

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        argv: list[str | Path] = [self.environment.python, SERVED / "mosec_app.py"]
        argv += ["--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
        argv += ["--path", str(directory / "sockets"), "--log-level", "warning"]
        return Launch(argv, order(workload, setting, port))

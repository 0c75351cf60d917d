"""LitServe, with its fast queue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import Environment
from bench.peers.peer import SERVED, Launch, Setting, order
from bench.peers.wire import JsonHttp
from bench.peers.workloads import Workload


class LitServePeer:
    name = "LitServe"
    wire = JsonHttp("/predict", ("content-type: application/json",))
    echoes = False
    polls = True

    def __init__(self) -> None:
        packages = ("litserve", "numpy", "safetensors", "tokenizers", "torch")
        self.environment = Environment("litserve", packages)

    @property
    def version(self) -> str:
        return self.environment.version

    def install(self) -> None:
        self.environment.install()

    def settings(self, workload: str) -> Sequence[Setting]:
        # Without a delay its batching loop polls, which takes a core by itself.
        if workload == "sentences":
            return [Setting(1), *(Setting(rows, 1.0) for rows in (4, 8, 16))]
        return [Setting(64, 1.0), Setting(1), Setting(16, 1.0), Setting(64, 5.0)]

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        argv = [self.environment.python, SERVED / "litserve_app.py"]
        return Launch(argv, order(workload, setting, port))

"""MLServer with a runtime of our own, over gRPC."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import Environment
from bench.peers.peer import Launch, Setting, free_port, order
from bench.peers.wire import Grpc
from bench.peers.workloads import Workload

IN_PROCESS = "in the server's process"
"""Note of a setting: the model runs without a worker process, which MLServer allows."""


class MLServerPeer:
    name = "MLServer"
    wire = Grpc()
    echoes = False
    polls = False

    def __init__(self) -> None:
        self.environment = Environment("mlserver", ("mlserver", "numpy", "torch"))

    @property
    def version(self) -> str:
        return self.environment.version

    def install(self) -> None:
        self.environment.install()

    def settings(self, workload: str) -> Sequence[Setting]:
        return [
            *(Setting(32, 1.0, note=IN_PROCESS), Setting(1, note=IN_PROCESS)),
            *(Setting(32, 1.0), Setting(1)),
        ]

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        server = {
            "host": "127.0.0.1",
            "grpc_port": port,
            "http_port": free_port(),
            "metrics_port": free_port(),
            "parallel_workers": 0 if setting.note == IN_PROCESS else 1,
            "grpc_max_message_length": -1,
        }
        model: dict[str, object] = {
            "name": workload.name,
            "implementation": "mlserver_runtime.Network",
        }
        if setting.rows > 1:
            model |= {"max_batch_size": setting.rows, "max_batch_time": setting.delay_ms / 1e3}
        (directory / "settings.json").write_text(json.dumps(server))
        (directory / "model-settings.json").write_text(json.dumps(model))
        mlserver = self.environment.python.with_name("mlserver")
        return Launch([mlserver, "start", directory], order(workload, setting, port))

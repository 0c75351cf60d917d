"""Headrace as a user starts it: nothing tuned, one worker with one torch thread."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from examples.sentences.build import build

from bench.peers.peer import SERVED, Launch, Setting, order
from bench.peers.wire import Grpc
from bench.peers.workloads import Workload

COMMAND = (sys.executable, "-m", "headrace_server.cli", "serve")
SHARED_MEMORY_FLAG = "--allow-client-shm"


class HeadracePeer:
    name = "Headrace"
    wire = Grpc()
    echoes = False
    polls = False

    @property
    def version(self) -> str:
        return version("headrace")

    def install(self) -> None:
        """Is there."""

    def settings(self, workload: str) -> Sequence[Setting]:
        return [Setting(0, note="nothing set")]

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        model = directory / "repository" / workload.name / "1"
        if workload.name == "sentences":
            build(model)
        else:
            model.mkdir(parents=True)
            shutil.copyfile(SERVED / "headrace_model.py", model / "model.py")
            shutil.copyfile(SERVED / "networks.py", model / "networks.py")
        argv = [*COMMAND, str(directory / "repository"), "--cores", "1", "--cache-dir", "none"]
        argv += ["--grpc-port", str(port), "--metrics-port", "0"]
        if workload.name == "images" and takes_shared_memory():
            argv.append(SHARED_MEMORY_FLAG)
        environment = order(workload, setting, port)
        del environment["PYTHONPATH"]  # finds its files by itself
        return Launch(argv, environment)


@functools.cache
def takes_shared_memory() -> bool:
    """Whether this version can let clients register shared memory."""
    # A wide terminal, or the name of the flag might be cut short.
    told = subprocess.check_output([*COMMAND, "--help"], text=True, env={"COLUMNS": "200"})
    return SHARED_MEMORY_FLAG in told

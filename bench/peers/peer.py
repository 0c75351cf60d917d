"""What a peer is: a server that can be installed, told how to batch, started and addressed."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.peers.environments import HERE
from bench.peers.wire import Wire
from bench.peers.workloads import Workload

SERVED = HERE / "served"


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is to batch: at most `rows` rows, for the first of which `delay_ms` may pass
    until others come. `note` tells more to the peer that made the setting."""

    rows: int = 64
    delay_ms: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        if self.note and not self.rows:
            return self.note
        batch = f"up to {self.rows} rows" if self.rows > 1 else "no batching"
        delay = f", {self.delay_ms:g} ms" if self.delay_ms else ""
        return batch + delay + (f", {self.note}" if self.note else "")


@dataclass(frozen=True, slots=True)
class Launch:
    """The command that starts a server, and what its environment has beside ours.

    `regions`: how the shared memory is called that it leaves behind when it is killed.
    """

    argv: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    regions: str = ""


class Peer(Protocol):
    """One server."""

    @property
    def name(self) -> str:
        """What it is called in the report."""
        ...

    @property
    def wire(self) -> Wire:
        """How it is spoken to."""
        ...

    @property
    def echoes(self) -> bool:
        """Whether its answers are its inputs."""
        ...

    @property
    def polls(self) -> bool:
        """Whether it takes CPU time while nobody asks it, and so is paused while others are
        measured."""
        ...

    @property
    def version(self) -> str:
        """What is measured, for the report."""
        ...

    def install(self) -> None:
        """Get it here. Raises `UnavailableError`."""
        ...

    def settings(self, workload: str) -> Sequence[Setting]:
        """What to try for a model, likely ones first: time may end. The best one is kept."""
        ...

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        """How to start it on `port` of the loopback interface; writes into the empty `directory`
        what it needs, and is started there."""
        ...


def order(workload: Workload, setting: Setting, port: int) -> dict[str, str]:
    """The environment that the programs in `served` read (`networks.Order`)."""
    return {
        "PEERS_WORKLOAD": workload.name,
        "PEERS_DIRECTORY": os.fspath(workload.directory),
        "PEERS_ROWS": str(setting.rows),
        "PEERS_DELAY_MS": str(setting.delay_ms),
        "PEERS_PORT": str(port),
        "PYTHONPATH": f"{SERVED}{os.pathsep}{workload.directory}",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

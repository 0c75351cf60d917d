"""How fast an only worker is made good, and what is left of a server that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.checked_models import differences
from bench.resources import alive, left_behind, tree, workers
from bench.soak.calls import Call
from headrace import AsyncClient
from headrace_server.testing import ServerProcess

GONE_S = 10.0
"""Within which the processes of a killed server must have ended."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One round: from SIGKILL to the answer, and what of that the new worker took to load."""

    took_s: float
    load_s: float

    @property
    def beyond_s(self) -> float:
        """What was not loading."""
        return self.took_s - self.load_s


@dataclass(frozen=True, slots=True)
class Remains:
    """What was left of a server: processes, and names in the file system."""

    processes: Sequence[int]
    files: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.processes or self.files)


def recover(repository: Path, call: Call, rounds: int, flags: Sequence[str]) -> list[Recovery]:
    """Each round on a server of its own: a worker that is lost again and again is given pauses."""
    found = []
    for _ in range(rounds):
        with ServerProcess(repository, *flags) as server:
            took_s = asyncio.run(_round(server, call))
        # Now that its whole log has been read.
        load_s = _logged_at(server, "is ready again") - _logged_at(server, "starting it again")
        found.append(Recovery(took_s, load_s))
    return found


async def _round(server: ServerProcess, call: Call) -> float:
    async with AsyncClient(server.grpc_address) as client:
        await client.infer(call.model, call.inputs)
        (pid,) = workers(server.pid)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        result = await client.infer(call.model, call.inputs, timeout=120.0)
        took_s = time.monotonic() - killed_s
    if problem := differences(result.outputs, call.expected or {}):
        raise RuntimeError(problem)
    return took_s


def _logged_at(server: ServerProcess, text: str) -> float:
    line = next(line for line in server.log if text in line)
    return datetime.fromisoformat(json.loads(line)["time"]).timestamp()


def kill_the_server(
    repository: Path, calls: Sequence[Call], flags: Sequence[str], temporary: Path
) -> Remains:
    """SIGKILL a server under load, and look what is left of it. Then the next one must serve."""
    place = {"TMPDIR": str(temporary)}
    server = ServerProcess(repository, *flags, environment=place).start()
    pids = asyncio.run(_killed_under_load(server, calls))
    remains = what_is_left(pids, temporary)
    with ServerProcess(repository, *flags, environment=place) as server:
        asyncio.run(_ask_all(server.grpc_address, calls))
    return Remains(remains.processes, left_behind(temporary))


async def _killed_under_load(server: ServerProcess, calls: Sequence[Call]) -> list[int]:
    async with AsyncClient(server.grpc_address) as client:
        infer = client.infer
        asked = [asyncio.create_task(infer(c.model, c.inputs)) for c in [*calls] * 4]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        pids = tree(server.pid)
        await asyncio.to_thread(server.kill)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return pids


async def _ask_all(address: str, calls: Sequence[Call]) -> None:
    async with AsyncClient(address) as client:
        for call in calls:
            result = await client.infer(call.model, call.inputs)
            if problem := differences(result.outputs, call.expected or {}):
                raise RuntimeError(problem)


def what_is_left(pids: Sequence[int], temporary: Path) -> Remains:
    """Which of these processes live on after a moment's grace, and what files there are."""
    deadline_s = time.monotonic() + GONE_S
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return Remains(left, left_behind(temporary))

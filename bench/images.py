"""Large tensors to a model that hardly looks at them: sent in messages beside shared memory.

    python -m bench.images [--payloads image volume volume_back] [--rounds 5] [--seconds 3]

Images of 3x224x224 floats (602 kB) and volumes of 16 MiB, the latter also sent back whole, through
`AsyncClient` on the same machine, closed loop. Both ways take turns, round after round, on the same
server. CPU is user and system time over the calls: of the server (front and worker together) and of
this client, which counts what it takes to fill an array and to look at the answer. Every answer is
checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import usage
from headrace import AsyncClient
from headrace_server.testing import ServerProcess

WAYS = ("plain", "shared")
IMAGE, VOLUME = (3, 224, 224), (4, 1024, 1024)

MODEL = """
from headrace_server import Model, TensorSpec

class Look(Model):
    inputs = [TensorSpec("x", "FP32", {shape})]
    outputs = [TensorSpec("y", "FP32", {answer})]
    max_batch_size = 16

    def forward(self, x):
        return {result}
"""


@dataclass(frozen=True, slots=True)
class Payload:
    """What travels: `shape` there, and back the same (`whole`) or its first number."""

    name: str
    shape: tuple[int, ...]
    whole: bool = False

    @property
    def answer(self) -> tuple[int, ...]:
        return self.shape if self.whole else (1,)

    @property
    def nbytes(self) -> int:
        return 4 * int(np.prod(self.shape))


PAYLOADS = (
    Payload("image", IMAGE),
    Payload("volume", VOLUME),
    Payload("volume_back", VOLUME, whole=True),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One closed loop of calls."""

    payload: str
    way: str
    in_flight: int
    calls: int
    server_us: float
    client_us: float
    calls_per_s: float


Caller = Callable[[float], Awaitable[None]]
"""Sends a tensor that begins with the number, and checks that the answer does too."""


def build_repository(repository: Path, payloads: Sequence[Payload]) -> None:
    for payload in payloads:
        directory = repository / payload.name / "1"
        directory.mkdir(parents=True)
        result = "x" if payload.whole else "x.reshape(len(x), -1)[:, :1]"
        code = MODEL.format(shape=list(payload.shape), answer=list(payload.answer), result=result)
        (directory / "model.py").write_text(code)


@asynccontextmanager
async def callers(
    client: AsyncClient, payload: Payload, way: str, count: int
) -> AsyncIterator[list[Caller]]:
    """As many callers, each with arrays of its own."""
    async with AsyncExitStack() as stack:
        empty: Any = np.empty
        if way == "shared":
            room = payload.nbytes * (2 if payload.whole else 1) + 256
            empty = (await stack.enter_async_context(client.shared_memory(count * room))).empty
        yield [_caller(client, payload, way, empty) for _ in range(count)]


def _caller(client: AsyncClient, payload: Payload, way: str, empty: Any) -> Caller:
    x = empty((1, *payload.shape), np.float32)
    x[:] = 0.5
    # A small answer is not worth a place of its own.
    into = {"y": empty((1, *payload.answer), np.float32)} if payload.whole else None
    given = into if way == "shared" else None

    async def call(number: float) -> None:
        x.reshape(-1)[0] = number
        answer = (await client.infer(payload.name, {"x": x}, into=given))["y"].reshape(-1)
        if answer[0] != number or (payload.whole and answer[-1] != 0.5):
            raise RuntimeError(f"expected {number}, got {answer[0]} ({payload.name}, {way})")

    return call


async def measure(
    pid: int, payload: Payload, way: str, callers: Sequence[Caller], seconds: float
) -> Run:
    calls = 0
    before, own_s, started_s = usage(pid), own_cpu_s(), time.perf_counter()
    until_s = started_s + seconds

    async def loop(call: Caller) -> None:
        nonlocal calls
        while time.perf_counter() < until_s:
            calls += 1
            await call(float(calls))

    await asyncio.gather(*map(loop, callers))
    elapsed_s = time.perf_counter() - started_s
    server_s, client_s = usage(pid).since(before), own_cpu_s() - own_s
    return Run(
        payload.name,
        way,
        len(callers),
        calls,
        server_s / calls * 1e6,
        client_s / calls * 1e6,
        calls / elapsed_s,
    )


def own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


async def compare(
    pid: int,
    address: str,
    payloads: Sequence[Payload],
    in_flight: Sequence[int],
    rounds: int,
    seconds: float,
) -> list[Run]:
    """Every payload both ways; the first round warms up and is not counted."""
    runs: list[Run] = []
    async with AsyncClient(address) as client:
        for payload in payloads:
            for number in range(rounds + 1):
                for count in in_flight:
                    for way in WAYS:
                        async with callers(client, payload, way, count) as ready:
                            run = await measure(
                                pid, payload, way, ready, seconds if number else min(1.0, seconds)
                            )
                        if number:
                            runs.append(run)
    return runs


def bench(
    payloads: Sequence[Payload], in_flight: Sequence[int], rounds: int, seconds: float
) -> list[Run]:
    with tempfile.TemporaryDirectory() as directory:
        build_repository(Path(directory), payloads)
        with ServerProcess(Path(directory), "--allow-client-shm", "--cores", "1") as server:
            return asyncio.run(
                compare(server.pid, server.grpc_address, payloads, in_flight, rounds, seconds)
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [payload.name for payload in PAYLOADS]
    parser.add_argument("--payloads", nargs="+", choices=names, default=names)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    options = parser.parse_args(arguments)
    payloads = [payload for payload in PAYLOADS if payload.name in options.payloads]
    runs = bench(payloads, options.in_flight, options.rounds, options.seconds)
    print(report(runs))
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def report(runs: Sequence[Run]) -> str:
    """Medians, and of the pairs of each round how often the one does what the other does."""
    lines = ["medians (least to most): calls per second, CPU us per call of server and client"]
    for payload, in_flight in dict.fromkeys((run.payload, run.in_flight) for run in runs):
        lines.append(f"\n{payload}, {in_flight} in flight")
        plain, shared = (
            [r for r in runs if (r.payload, r.in_flight, r.way) == (payload, in_flight, way)]
            for way in WAYS
        )
        for way, chosen in zip(WAYS, (plain, shared), strict=True):
            lines.append(
                f"  {way:7} {spread([r.calls_per_s for r in chosen])}/s"
                f"  server {spread([r.server_us for r in chosen])}"
                f"  client {spread([r.client_us for r in chosen])}"
            )
        pairs = list(zip(plain, shared, strict=True))
        rates = spread([s.calls_per_s / p.calls_per_s for p, s in pairs], 2)
        cpu = spread([p.server_us / max(s.server_us, 1.0) for p, s in pairs], 2)
        lines.append(f"  shared memory: {rates} times the calls, server CPU divided by {cpu}")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 0) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:6.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())

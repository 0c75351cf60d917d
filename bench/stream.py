"""CPU per call of `AsyncClient`, unary and multiplexed, on a small MLP and on a bare echo.

    python -m bench.stream [--rounds 5] [--requests 8000]

Both ways take turns, round after round, on the same servers, closed loop. CPU is user and system
time over the calls: of the server (front and worker together) and of this client. The echo knows
nothing of our extension, so there each message carries one call; it is what a stream costs
without bundles.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cost import FLOATS, build_repository, check_answer, echo_server
from bench.processes import usage
from headrace import AsyncClient
from headrace_server.testing import ServerProcess

IN_FLIGHT = (1, 16, 64, 256)


@dataclass(frozen=True, slots=True)
class Run:
    """One closed loop of calls."""

    server: str
    way: str
    in_flight: int
    server_us: float
    client_us: float
    calls_per_s: float


async def measure(
    server: str, way: str, pid: int, client: AsyncClient, inputs: Any, in_flight: int, calls: int
) -> Run:
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await client.infer("mlp", inputs)

    before, own_s, started_s = usage(pid), own_cpu_s(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    elapsed_s = time.perf_counter() - started_s
    server_s, client_s = usage(pid).since(before), own_cpu_s() - own_s
    return Run(
        server, way, in_flight, server_s / calls * 1e6, client_s / calls * 1e6, calls / elapsed_s
    )


def own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


async def compare(server: str, pid: int, address: str, inputs: Any, options: Any) -> list[Run]:
    runs: list[Run] = []
    async with AsyncClient(address) as unary, AsyncClient(address, multiplex=True) as multiplexed:
        while not multiplexed.open_streams:
            await multiplexed.infer("mlp", inputs)
        ways = (("unary", unary), ("stream", multiplexed))
        for way, client in ways:  # warm-up, not counted
            await measure(server, way, pid, client, inputs, 64, min(2_000, options.requests))
        for _ in range(options.rounds):
            for in_flight in IN_FLIGHT:
                for way, client in ways:
                    calls = options.requests // (4 if in_flight == 1 else 1)
                    runs.append(await measure(server, way, pid, client, inputs, in_flight, calls))
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=8_000)
    parser.add_argument("--json", type=Path, help="write every run to this file")
    options = parser.parse_args(arguments)
    image = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    with tempfile.TemporaryDirectory() as directory:
        build_repository(Path(directory))
        with echo_server() as (pid, address):
            runs = asyncio.run(compare("echo", pid, address, {"input": image}, options))
        with ServerProcess(Path(directory)) as server:
            name = input_name(server.grpc_address)
            check_answer(server.grpc_address, image, name)
            runs += asyncio.run(
                compare("headrace", server.pid, server.grpc_address, {name: image}, options)
            )
    report(runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def input_name(address: str) -> str:
    async def ask() -> str:
        async with AsyncClient(address) as client:
            return (await client.model_metadata("mlp")).inputs[0].name

    return asyncio.run(ask())


def report(runs: list[Run]) -> None:
    print("medians (least to most) of CPU us per call, and calls per second")
    for server in ("echo", "headrace"):
        for in_flight in IN_FLIGHT:
            print(f"\n{server}, {in_flight} in flight")
            for way in ("unary", "stream"):
                chosen = [
                    r for r in runs if (r.server, r.way, r.in_flight) == (server, way, in_flight)
                ]
                print(
                    f"  {way:7} server {spread([r.server_us for r in chosen])}"
                    f"  client {spread([r.client_us for r in chosen])}"
                    f"  {spread([r.calls_per_s for r in chosen])}/s"
                )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    sys.exit(main())

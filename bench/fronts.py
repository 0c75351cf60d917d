"""What several fronts cost and what they are worth, beside the engine's own process alone (h2load).

    python -m bench.fronts [--fronts 1 2] [--rounds 5] [--requests 12000] [--json FILE]

Servers with each number of fronts get the same request of a small network from the same load
generator, in turn, round after round. CPU is the user and system time of all processes of a server
over the requests, and that of the engine's process alone, which is what fronts take work from: the
inverse of it is what one such process could feed, given cores enough.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import headrace
from bench.cost import FLOATS, build_repository, check_answer, load, request_body
from bench.processes import usage
from bench.stream import spread
from headrace_server.testing import ServerProcess

LOADS = ((4, 16), (16, 4))
"""Connections, and requests in flight on each. Which front a connection comes to is chance: of
four, all come to one of two fronts in an eighth of the runs."""


@dataclass(frozen=True, slots=True)
class Run:
    """One h2load run. CPU per request in microseconds, `engine_us` of the engine's process."""

    fronts: int
    clients: int
    streams: int
    requests_per_s: float
    cpu_us: float
    engine_us: float


def measure(
    fronts: int, server: ServerProcess, body: Path, clients: int, streams: int, requests: int
) -> Run:
    before = usage(server.pid)
    rate = load(server.grpc_address, body, clients, streams, requests)
    after = usage(server.pid)
    engine_s = after.by_pid[server.pid] - before.by_pid[server.pid]
    per_request = 1e6 / requests
    cpu_us = after.since(before) * per_request
    return Run(fronts, clients, streams, rate, cpu_us, engine_s * per_request)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fronts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        print("bench.fronts needs h2load: the package nghttp2-client has it", file=sys.stderr)
        return 1
    image = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        repository, body = Path(directory) / "repository", Path(directory) / "body.bin"
        build_repository(repository)
        servers = {
            count: stack.enter_context(ServerProcess(repository, "--fronts", str(count)))
            for count in options.fronts
        }
        with headrace.Client(servers[options.fronts[0]].grpc_address) as client:
            (given,) = client.model_metadata("mlp").inputs
        body.write_bytes(request_body(image, given.name))
        for count, server in servers.items():
            check_answer(server.grpc_address, image, given.name)
            measure(count, server, body, 16, 4, 4_000)  # warm-up, not counted
        for number in range(options.rounds):
            order = options.fronts if number % 2 else options.fronts[::-1]
            for clients, streams in LOADS:
                runs += [
                    measure(count, servers[count], body, clients, streams, options.requests)
                    for count in order
                ]
    report(runs, options.fronts)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def report(runs: list[Run], fronts: list[int]) -> None:
    for clients, streams in LOADS:
        print(f"\n{clients} x {streams} in flight")
        chosen = [run for run in runs if (run.clients, run.streams) == (clients, streams)]
        for count in fronts:
            of = [run for run in chosen if run.fronts == count]
            print(
                f"  {count} fronts: CPU {spread([r.cpu_us for r in of])} us/request, of which the "
                f"engine's process {spread([r.engine_us for r in of])}; "
                f"{spread([r.requests_per_s for r in of])} req/s"
            )


if __name__ == "__main__":
    sys.exit(main())

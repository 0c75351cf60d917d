"""What a request costs over HTTP, as bytes and as JSON, beside gRPC, on one server (h2load).

    python -m bench.over_http [--rounds 5] [--requests 6000] [--json FILE]

The same row of a small network (784 floats in, 10 out) goes to the same server in three ways, in
turn, round after round, at 1 and at 64 in flight. CPU is the user and system time of all processes
of the server over the requests, and that of the engine's process alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace
from bench.cost import FLOATS, build_repository, check_answer, h2load, load, request_body
from bench.processes import usage
from bench.stream import spread
from headrace_server.gateway.writing import LENGTH_HEADER
from headrace_server.testing import ServerProcess

WAYS = ("gRPC", "bytes", "JSON")
IN_FLIGHT = (1, 64)
PATH = "/v2/models/mlp/infer"


@dataclass(frozen=True, slots=True)
class Run:
    """One h2load run. CPU per request in microseconds, `engine_us` of the engine's process."""

    way: str
    in_flight: int
    requests_per_s: float
    cpu_us: float
    engine_us: float


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent over HTTP: a body and its headers."""

    body: bytes
    headers: dict[str, str]


def request_over_http(image: npt.NDArray[np.float32], name: str, way: str) -> Request:
    """The request with this input, as bytes behind its JSON or in it."""
    tensor: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(image.shape)}
    if way == "JSON":
        tensor["data"] = image.ravel().tolist()
        return Request(json.dumps({"inputs": [tensor]}).encode(), {})
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return Request(head + image.tobytes(), {LENGTH_HEADER: str(len(head))})


def check(server: ServerProcess, request: Request, image: npt.NDArray[np.float32]) -> None:
    """Fail unless the answer over HTTP is the one over gRPC."""
    with headrace.Client(server.grpc_address) as client:
        (given,) = client.model_metadata("mlp").inputs
        (expected,) = client.infer("mlp", {given.name: image}).outputs.values()
    url = f"http://{server.http_address}{PATH}"
    asked = urllib.request.Request(url, request.body, request.headers)
    with urllib.request.urlopen(asked) as answer:
        said, length = answer.read(), answer.headers.get(LENGTH_HEADER)
    if length is None:
        got = np.array(json.loads(said)["outputs"][0]["data"], np.float32)
    else:
        got = np.frombuffer(said[int(length) :], np.float32)
    np.testing.assert_array_equal(got, expected.ravel())


def measure(
    server: ServerProcess, way: str, request: Request | None, body: Path, in_flight: int, count: int
) -> Run:
    before = usage(server.pid)
    if request is None:
        rate = load(server.grpc_address, body, in_flight, 1, count)
    else:
        headers = [word for header in request.headers.items() for word in ("-H", ": ".join(header))]
        rate = h2load(
            count,
            *("--h1", "-c", str(in_flight), "-d", str(body), *headers),
            f"http://{server.http_address}{PATH}",
        )
    after = usage(server.pid)
    engine_s = after.by_pid[server.pid] - before.by_pid[server.pid]
    return Run(way, in_flight, rate, after.since(before) / count * 1e6, engine_s / count * 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=6_000, help="a tenth of it one at a time")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        print("bench.over_http needs h2load: the package nghttp2-client has it", file=sys.stderr)
        return 1
    image = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory:
        repository = Path(directory) / "repository"
        build_repository(repository)
        with ServerProcess(repository, "--http-port", "0") as server:
            with headrace.Client(server.grpc_address) as client:
                (given,) = client.model_metadata("mlp").inputs
            check_answer(server.grpc_address, image, given.name)
            requests = {way: request_over_http(image, given.name, way) for way in WAYS[1:]}
            bodies = {way: Path(directory) / way for way in WAYS}
            bodies["gRPC"].write_bytes(request_body(image, given.name))
            for way, request in requests.items():
                check(server, request, image)
                bodies[way].write_bytes(request.body)
            for way in WAYS:  # warm-up, not counted
                measure(server, way, requests.get(way), bodies[way], 64, options.requests // 4)
            for number in range(options.rounds):
                for in_flight in IN_FLIGHT:
                    count = options.requests // (10 if in_flight == 1 else 1)
                    for way in WAYS if number % 2 else WAYS[::-1]:
                        asked = requests.get(way)
                        runs.append(measure(server, way, asked, bodies[way], in_flight, count))
    report(runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def report(runs: list[Run]) -> None:
    for in_flight in IN_FLIGHT:
        print(f"\n{in_flight} in flight")
        for way in WAYS:
            of = [run for run in runs if (run.way, run.in_flight) == (way, in_flight)]
            print(
                f"  {way:5} {spread([r.requests_per_s for r in of])} req/s; CPU "
                f"{spread([r.cpu_us for r in of])} us/request, of which the engine's process "
                f"{spread([r.engine_us for r in of])}"
            )


if __name__ == "__main__":
    sys.exit(main())

"""CPU per request for a small MLP, beside a bare grpc.aio echo in the same run (needs h2load).

    python -m bench.cost [--rounds 5] [--requests 12000]

Both servers get the same 784-float request from the same C load generator, in turn, round after
round. CPU is the servers' own user and system time over the requests: for Headrace the front and
its worker together. h2load looks at HTTP status only, so one answer of each is checked first.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import headrace
from bench.processes import usage
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.testing import ServerProcess

FLOATS = 784
METHOD = "inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Run:
    """One h2load run against one server."""

    server: str
    clients: int
    streams: int
    requests_per_s: float
    cpu_us: float


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(FLOATS, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    ).eval()


def build_repository(repository: Path) -> None:
    """Write `mlp/1/model.pt2`, batch dimension dynamic up to 64."""
    directory = repository / "mlp" / "1"
    directory.mkdir(parents=True)
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(mlp(), (torch.zeros(2, FLOATS),), dynamic_shapes=({0: batch},))
    torch.export.save(program, directory / "model.pt2")


def request_body(image: np.ndarray, input_name: str) -> bytes:
    """A ModelInferRequest as one length-prefixed gRPC message."""
    message = pb.ModelInferRequest(model_name="mlp")
    message.inputs.add(name=input_name, datatype="FP32", shape=image.shape)
    message.raw_input_contents.append(image.tobytes())
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def measure(
    server: str, pid: int, address: str, body: Path, clients: int, streams: int, requests: int
) -> Run:
    before = usage(pid)
    command = [
        *("h2load", "-c", str(clients), "-m", str(streams), "-n", str(requests)),
        *("-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"http://{address}/{METHOD}",
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu_s = usage(pid).since(before)
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    done = re.search(r"(\d+) succeeded", output)
    if rate is None or done is None or int(done[1]) != requests:
        raise RuntimeError(f"h2load did not finish every request:\n{output}")
    return Run(server, clients, streams, float(rate[1]), cpu_s / requests * 1e6)


@contextmanager
def echo_server() -> Iterator[tuple[int, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.pid, f"127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.communicate()


def check_answer(address: str, image: np.ndarray, input_name: str) -> None:
    with headrace.Client(address) as client, torch.inference_mode():
        (answer,) = client.infer("mlp", {input_name: image}).outputs.values()
        expected = mlp()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--json", type=Path, help="write every run to this file")
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        print("bench.cost needs h2load: the package nghttp2-client has it", file=sys.stderr)
        return 1
    image = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory:
        repository, body = Path(directory) / "repository", Path(directory) / "body.bin"
        build_repository(repository)
        with ServerProcess(repository) as server, echo_server() as (echo_pid, echo_address):
            with headrace.Client(server.grpc_address) as client:
                (given,) = client.model_metadata("mlp").inputs
            body.write_bytes(request_body(image, given.name))
            check_answer(server.grpc_address, image, given.name)
            both = (
                ("echo", echo_pid, echo_address),
                ("headrace", server.pid, server.grpc_address),
            )
            for name, pid, address in both:  # warm-up, not counted
                measure(name, pid, address, body, 4, 16, 2_000)
            for _ in range(options.rounds):
                for clients, streams, share in ((4, 16, 1), (1, 1, 4)):
                    for name, pid, address in both:
                        requests = options.requests // share
                        runs.append(measure(name, pid, address, body, clients, streams, requests))
    report(runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    return 0


def report(runs: list[Run]) -> None:
    for clients, streams in ((4, 16), (1, 1)):
        chosen = [r for r in runs if (r.clients, r.streams) == (clients, streams)]
        print(f"\n{clients} x {streams} in flight")
        for name in ("echo", "headrace"):
            cpu = sorted(r.cpu_us for r in chosen if r.server == name)
            rate = sorted(r.requests_per_s for r in chosen if r.server == name)
            print(
                f"  {name:9} CPU {statistics.median(cpu):6.0f} us/request "
                f"({cpu[0]:.0f} to {cpu[-1]:.0f}), {statistics.median(rate):7.0f} req/s "
                f"({rate[0]:.0f} to {rate[-1]:.0f})"
            )
        pairs = zip(
            (r for r in chosen if r.server == "headrace"),
            (r for r in chosen if r.server == "echo"),
            strict=True,
        )
        ratios = sorted(ours.cpu_us / echo.cpu_us for ours, echo in pairs)
        print(
            f"  CPU ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}, pair by pair)"
        )


if __name__ == "__main__":
    sys.exit(main())

"""CPU per request for a small MLP, beside a bare grpc.aio echo in the same run (needs h2load).

    python -m bench.cost [--rounds 5] [--requests 12000] [--queued-requests 20000] [--idle 20]

Both servers get the same 784-float request from the same C load generator, in turn, round after
round. CPU is the servers' own user and system time over the requests: for Headrace the front and
its worker together. h2load looks at HTTP status only, so one answer of each is checked first.

Then a model that takes 8 ms for up to 16 rows gets 100 and 10,000 requests at once, in turn: what
a request costs the front must not depend on how many wait. What it costs gRPC itself does: an echo
that holds its calls as long shows how much. Last, the server is left alone: CPU of
all its processes, and the memory of the front and of the MLP's worker.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import headrace
from bench.processes import command_line, resident_bytes, usage
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.testing import ServerProcess

FLOATS = 784
IN_FLIGHT = (100, 10_000)
SLOW_MODEL = """
import time
import torch
from headrace_server import Model, TensorSpec

class Slow(Model):
    inputs = [TensorSpec("x", "FP32", [784])]
    outputs = [TensorSpec("y", "FP32", [10])]
    max_batch_size = 16

    def forward(self, x):
        time.sleep(0.008)
        return x[:, :10]
"""
METHOD = "inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Run:
    """One h2load run against one server."""

    server: str
    clients: int
    streams: int
    requests_per_s: float
    cpu_us: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Queued:
    """One run against the slow model, or an echo as slow, so many requests at once; CPU of the
    front alone."""

    server: str
    in_flight: int
    requests_per_s: float
    front_us: float


@dataclass(frozen=True, slots=True)
class AtRest:
    """The server with nothing to do: CPU seconds of all its processes per second, and memory."""

    seconds: float
    cpu_share: float
    front_bytes: int
    worker_bytes: int


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


def add_slow_model(repository: Path) -> None:
    """Write `slow/1/model.py`."""
    directory = repository / "slow" / "1"
    directory.mkdir(parents=True)
    (directory / "model.py").write_text(SLOW_MODEL)


def request_body(image: np.ndarray, input_name: str, model: str = "mlp") -> bytes:
    """A ModelInferRequest as one length-prefixed gRPC message."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name=input_name, datatype="FP32", shape=image.shape)
    message.raw_input_contents.append(image.tobytes())
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def measure(
    server: str, pid: int, address: str, body: Path, clients: int, streams: int, requests: int
) -> Run:
    before = usage(pid)
    log = body.with_suffix(".log")
    rate = load(address, body, clients, streams, requests, "--log-file", str(log))
    cpu_s = usage(pid).since(before)
    # Each line: when the request began, its status, and how many microseconds it took.
    times_us = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
    log.unlink()
    p50_us, p99_us = (float(times_us[int(share * len(times_us))]) for share in (0.5, 0.99))
    return Run(server, clients, streams, rate, cpu_s / requests * 1e6, p50_us, p99_us)


def load(
    address: str, body: Path, clients: int, streams: int, requests: int, *options: str
) -> float:
    """Send so many requests, as fast as they are answered; returns how many went per second."""
    return h2load(
        requests,
        *("-c", str(clients), "-m", str(streams), *options),
        *("-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"http://{address}/{METHOD}",
    )


def h2load(requests: int, *arguments: str) -> float:
    """How many of so many requests went per second.

    Raises:
        RuntimeError: not every one succeeded.
    """
    command = ["h2load", "-n", str(requests), *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    done = re.search(r"(\d+) succeeded", output)
    if rate is None or done is None or int(done[1]) != requests:
        raise RuntimeError(f"h2load did not finish every request:\n{output}")
    return float(rate[1])


def measure_queued(
    server: str, pid: int, address: str, body: Path, in_flight: int, requests: int
) -> Queued:
    """What a request costs the front while so many are under way on four connections."""
    before_s = usage(pid).by_pid[pid]
    rate = load(address, body, 4, in_flight // 4, requests)
    front_s = usage(pid).by_pid[pid] - before_s
    return Queued(server, in_flight, rate, front_s / requests * 1e6)


def measure_at_rest(pid: int, seconds: float) -> AtRest:
    before = usage(pid)
    time.sleep(seconds)
    cpu_s = usage(pid).since(before)
    worker = next(p for p in before.by_pid if "mlp/1#0" in command_line(p))
    return AtRest(seconds, cpu_s / seconds, resident_bytes(pid), resident_bytes(worker))


@contextmanager
def echo_server(*flags: str) -> Iterator[tuple[int, str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo", *flags],
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
    parser.add_argument("--queued-requests", type=int, default=20_000)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        print("bench.cost needs h2load: the package nghttp2-client has it", file=sys.stderr)
        return 1
    image = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    runs: list[Run] = []
    queued: list[Queued] = []
    with tempfile.TemporaryDirectory() as directory:
        repository, body = Path(directory) / "repository", Path(directory) / "body.bin"
        slow_body = Path(directory) / "slow.bin"
        build_repository(repository)
        add_slow_model(repository)
        with (
            ServerProcess(repository) as server,
            echo_server() as (echo_pid, echo_address),
            echo_server("--hold") as (held_pid, held_address),
        ):
            with headrace.Client(server.grpc_address) as client:
                (given,) = client.model_metadata("mlp").inputs
            body.write_bytes(request_body(image, given.name))
            slow_body.write_bytes(request_body(image, "x", "slow"))
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
            # After the first time there is memory for so many.
            warm_up = min(max(IN_FLIGHT), options.queued_requests)
            both = (("echo", held_pid, held_address), ("headrace", server.pid, server.grpc_address))
            for name, pid, address in both:
                measure_queued(name, pid, address, slow_body, max(IN_FLIGHT), warm_up)
            for number in range(options.rounds):
                order = IN_FLIGHT if number % 2 else IN_FLIGHT[::-1]
                queued += [
                    measure_queued(name, pid, address, slow_body, many, options.queued_requests)
                    for many in order
                    for name, pid, address in both
                ]
            at_rest = measure_at_rest(server.pid, options.idle)
    report(runs)
    report_queued(queued)
    print(
        f"\nat rest: {at_rest.cpu_share:.2%} of a core; the front has "
        f"{at_rest.front_bytes / 1e6:.0f} MB of memory, the worker "
        f"{at_rest.worker_bytes / 1e6:.0f} MB"
    )
    if options.json:
        raw = {
            "runs": [asdict(run) for run in runs],
            "queued": [asdict(run) for run in queued],
            "at_rest": asdict(at_rest),
        }
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
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
                f"({rate[0]:.0f} to {rate[-1]:.0f}), "
                f"p50 {statistics.median(r.p50_us for r in chosen if r.server == name):.0f} us, "
                f"p99 {statistics.median(r.p99_us for r in chosen if r.server == name):.0f} us"
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


def report_queued(runs: list[Queued]) -> None:
    print("\nCPU of the front per request, behind a slow model")
    for name in ("echo", "headrace"):
        few, many = (
            sorted(r.front_us for r in runs if (r.server, r.in_flight) == (name, number))
            for number in IN_FLIGHT
        )
        for number, times in zip(IN_FLIGHT, (few, many), strict=True):
            print(
                f"  {name:9} {number:>6} at once  {statistics.median(times):6.0f} us "
                f"({times[0]:.0f} to {times[-1]:.0f})"
            )
        ratio = statistics.median(many) / statistics.median(few)
        print(f"  {name:9} ratio of the medians {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())

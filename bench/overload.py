"""More load than a server can carry: what is still answered in time, and how the rest is told.

    python -m bench.overload [--loads 0.5 1 1.5 2 3] [--rounds 3] [--seconds 8] [--json FILE]

A model whose forward pass sleeps like a device does (20 ms and 4 ms per row, 16 rows at most) is
served under the learned policy; its capacity is measured first, closed loop. Then three questions:

- *Goodput.* Open loop, Poisson, at multiples of that capacity, every request with a timeout of
  250 ms. Good is what is answered within it: by the client's clock, from the moment that it was
  due, and by the server's own times of queue and worker (the timeout is the server's to keep; it
  cannot see what the network and a busy client add).
- *Retries.* Callers with the SDK's default retry policy, and in turn with them callers that never
  try again, go from 0.7 of the capacity to twice as much and back. How many attempts does that make
  of a call, and how long after the end of the overload until everybody is answered again?
- *Idle connections.* p99 under half of the capacity of a quick model, with and without a thousand
  connections that say nothing, in turn.

All steps of a round are taken in turn, round after round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np

from bench.processes import usage
from headrace.aio import AsyncClient
from headrace.errors import ServerError
from headrace.retry import DEFAULT_RETRY, RetryPolicy
from headrace_server.testing import ServerProcess

BASE_S, ROW_S, MOST_ROWS = 0.020, 0.004, 16
TIMEOUT_S = 0.25
"""Three of the largest batches: long enough for full ones, short enough to be missed."""

QUICK_S = 0.001
QUICK_RATE = 200.0
"""Requests per second for the quick model, which one at a time carries a thousand."""

CALM, STORM = 0.7, 2.0
PATIENCE_S = 2.0
"""How long a retrying caller waits in all; each attempt has `TIMEOUT_S`."""

SLICE_S = 0.5
SETTINGS, SETTINGS_TAKEN = (bytes([0, 0, 0, 4, taken, 0, 0, 0, 0]) for taken in (0, 1))
"""HTTP/2 frames (RFC 9113) without contents."""

ONCE = RetryPolicy(max_attempts=1)
POLICIES = {"never again": ONCE, "SDK's default": DEFAULT_RETRY}

MODEL = """\
import time

from headrace_server import Model, TensorSpec


class Paced(Model):
    inputs = [TensorSpec("x", "FP32", [1])]
    outputs = [TensorSpec("y", "FP32", [1])]
    max_batch_size = {most_rows}

    def forward(self, x):
        time.sleep({base_s} + {row_s} * len(x))
        return x
"""
X = {"x": np.zeros((1, 1), dtype=np.float32)}


@dataclass(frozen=True, slots=True)
class Call:
    """One call: when it was due, from then to its end, and why it failed (a refusal counts from
    when the call was sent). `server_s`: in queue and worker, by the server. `hint`: whether it was
    told when to come again."""

    due_s: float
    seconds: float
    lag_s: float
    reason: str = ""
    hint: bool = False
    server_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Goodput:
    """One load for one round. `good_per_s` by the client, `good_by_server` by the server, per
    second. Refusals: milliseconds from sending to being told, and the share that was told when to
    come again. `front_us`: CPU of the server's front per request."""

    load: float
    round: int
    rate: float
    good_per_s: float
    good_by_server: float
    reasons: dict[str, int]
    refusal_p50_ms: float
    refusal_p99_ms: float
    hints: float
    front_us: float
    lag_p99_ms: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kind of caller through calm, storm and calm. Shares are of calls answered at all;
    `recovered_s`: from the end of the storm to when all calls are answered for good."""

    policy: str
    round: int
    calm: float
    storm: float
    after: float
    attempts: float
    recovered_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """p50 and p99 of the quick model beside so many idle connections."""

    connections: int
    round: int
    p50_ms: float
    p99_ms: float
    calls: int


def write_models(repository: Path) -> None:
    for name, base_s, row_s, rows in (
        ("paced", BASE_S, ROW_S, MOST_ROWS),
        ("quick", QUICK_S, 0.0, 1),
    ):
        directory = repository / name / "1"
        directory.mkdir(parents=True)
        source = MODEL.format(base_s=base_s, row_s=row_s, most_rows=rows)
        (directory / "model.py").write_text(source)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    random, at_s, times_s = Random(seed), 0.0, []
    while (at_s := at_s + random.expovariate(rate)) < seconds:
        times_s.append(at_s)
    return times_s


async def drive(
    client: AsyncClient, model: str, times_s: Sequence[float], timeout_s: float
) -> list[Call]:
    """Send a request at each of these moments, answered or not."""
    begin_s = time.perf_counter() + 0.1
    parameters: dict[str, int | bool] = {"headrace_timing": True}
    if model == "paced":
        parameters["timeout"] = round(TIMEOUT_S * 1e6)

    async def call(due_s: float) -> Call:
        sent_s = time.perf_counter() - begin_s
        reason, hint, server_s = "", False, math.inf
        try:
            answer = await client.infer(model, X, parameters=parameters, timeout=timeout_s)
            assert answer.timing is not None
            server_s = answer.timing.server_s
        except ServerError as error:
            reason, hint = error.reason or error.code.name, error.retry_after_s is not None
        seconds = time.perf_counter() - begin_s - due_s
        lag_s = sent_s - due_s
        return Call(due_s, seconds - lag_s if reason else seconds, lag_s, reason, hint, server_s)

    tasks = []
    for due_s in times_s:
        await asyncio.sleep(begin_s + due_s - time.perf_counter())
        tasks.append(asyncio.create_task(call(due_s)))
    return list(await asyncio.gather(*tasks))


async def capacity(address: str, seconds: float) -> float:
    """Answers per second in a closed loop that keeps every batch full."""
    async with AsyncClient(address, retry=ONCE) as client:
        answered, end_s = 0, math.inf

        async def caller() -> None:
            nonlocal answered
            while time.perf_counter() < end_s:
                await client.infer("paced", X)
                answered += time.perf_counter() < end_s

        end_s = time.perf_counter() + 1.0  # warm-up, not counted
        await asyncio.gather(*(caller() for _ in range(3 * MOST_ROWS)))
        answered, end_s = 0, time.perf_counter() + seconds
        await asyncio.gather(*(caller() for _ in range(3 * MOST_ROWS)))
    return answered / seconds


async def goodput(
    server: ServerProcess, load: float, number: int, rate: float, s: float
) -> Goodput:
    times_s = poisson(rate, s, seed=number)
    before = usage(server.pid)
    async with AsyncClient(server.grpc_address, retry=ONCE) as client:
        # The deadline itself is left to the server; the client waits a little longer.
        calls = await drive(client, "paced", times_s, timeout_s=1.0)
    front_s = usage(server.pid).by_pid[server.pid] - before.by_pid[server.pid]
    # At first the queue has yet to fill.
    since_s = min(1.0, s / 4)
    counted = [c for c in calls if c.due_s >= since_s]
    refused = [c for c in counted if c.reason]
    p50, p99 = percentiles([c.seconds * 1e3 for c in refused])
    return Goodput(
        load,
        number,
        rate,
        sum(not c.reason and c.seconds <= TIMEOUT_S for c in counted) / (s - since_s),
        sum(c.server_s <= TIMEOUT_S for c in counted) / (s - since_s),
        dict(Counter(c.reason for c in refused)),
        p50,
        p99,
        share(c.hint for c in refused),
        front_s / len(calls) * 1e6,
        percentiles([c.lag_s * 1e3 for c in counted])[1],
    )


async def recovery(
    server: ServerProcess, policy: str, number: int, full: float, s: float
) -> Recovery:
    """Calm, storm, calm, each for `s` seconds."""
    times_s: list[float] = []
    for phase, load in enumerate((CALM, STORM, CALM)):
        times_s += [phase * s + t for t in poisson(load * full, s, seed=3 * number + phase)]
    before = requests_of(server)
    async with AsyncClient(server.grpc_address, retry=POLICIES[policy]) as client:
        calls = await drive(client, "paced", times_s, PATIENCE_S)
    attempts = requests_of(server) - before
    phases = [[c for c in calls if p * s <= c.due_s < (p + 1) * s] for p in range(3)]
    calm, storm, after = (share(not c.reason for c in phase) for phase in phases)
    return Recovery(
        policy, number, calm, storm, after, attempts / len(calls), recovered_s(calls, 2 * s)
    )


def recovered_s(calls: Sequence[Call], storm_end_s: float) -> float:
    """Seconds from the end of the storm until the first slice from which on nearly everybody is
    answered, as in the calm before; infinite if that never comes."""
    last_s = max(call.due_s for call in calls)
    edges = np.arange(storm_end_s, last_s, SLICE_S)
    since_s = math.inf
    for begin_s, end_s in pairwise(edges):
        due = [call for call in calls if begin_s <= call.due_s < end_s]
        if share(not call.reason for call in due) < 0.99:
            since_s = math.inf
        else:
            since_s = min(since_s, float(begin_s - storm_end_s))
    return since_s


async def idle(server: ServerProcess, connections: int, number: int, seconds: float) -> Idle:
    with idle_connections(server.grpc_address, connections):
        async with AsyncClient(server.grpc_address, retry=ONCE) as client:
            await drive(client, "quick", poisson(QUICK_RATE, 0.5, seed=0), timeout_s=10.0)
            calls = await drive(
                client, "quick", poisson(QUICK_RATE, seconds, seed=number), timeout_s=10.0
            )
    if any(call.reason for call in calls):
        raise RuntimeError(f"calls failed: {Counter(call.reason for call in calls)}")
    p50, p99 = percentiles([call.seconds * 1e3 for call in calls])
    return Idle(connections, number, p50, p99, len(calls))


@contextmanager
def idle_connections(address: str, count: int) -> Iterator[None]:
    """A process beside this one that holds so many connections and says nothing on them."""
    if not count:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.overload", "--hold", address, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != b"holding":
            raise RuntimeError(f"could not open {count} connections")
        yield
    finally:
        process.communicate()


def hold(address: str, count: int) -> None:
    """Shake hands on so many sockets and say nothing more until the end of input. Sockets, since a
    thousand idle channels of gRPC's take a share of the CPU that is the server's here."""
    host, _, port = address.rpartition(":")
    connections = [socket.create_connection((host, int(port)), timeout=30.0) for _ in range(count)]
    for connection in connections:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS + SETTINGS_TAKEN)
    for connection in connections:
        if not connection.recv(1 << 12):
            raise RuntimeError("the server closed an idle connection")
    print("holding", flush=True)
    sys.stdin.read()


def requests_of(server: ServerProcess) -> float:
    """Requests of the paced model so far, whatever became of them."""
    with urllib.request.urlopen(server.metrics_url) as page:
        found = re.findall(
            r'^headrace_requests_total\{[^}]*model="paced"[^}]*\} (\S+)$',
            page.read().decode(),
            re.MULTILINE,
        )
    return sum(map(float, found))


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p99; NaN where there is nothing."""
    if not values:
        return math.nan, math.nan
    p50, p99 = np.percentile(values, [50, 99])
    return float(p50), float(p99)


def share(true: Iterator[bool]) -> float:
    values = list(true)
    return sum(values) / len(values) if values else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="per step and phase")
    parser.add_argument("--connections", type=int, default=1_000, help="that are idle")
    parser.add_argument("--pairs", type=int, default=5, help="rounds with and without those")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        hold(options.hold[0], int(options.hold[1]))
        return 0
    goodputs: list[Goodput] = []
    recoveries: list[Recovery] = []
    idles: list[Idle] = []
    with tempfile.TemporaryDirectory() as directory:
        write_models(Path(directory))
        with ServerProcess(Path(directory), "--cache-dir", "none") as server:
            full = asyncio.run(capacity(server.grpc_address, options.seconds))
            print(f"capacity: {full:.1f} requests/s", flush=True)
            for number in range(options.rounds):
                for load in options.loads:
                    run = goodput(server, load, number, load * full, options.seconds)
                    goodputs.append(asyncio.run(run))
                    print(f"round {number + 1}: {goodputs[-1]}", flush=True)
                for policy in POLICIES:
                    again = recovery(server, policy, number, full, options.seconds)
                    recoveries.append(asyncio.run(again))
                    print(f"round {number + 1}: {recoveries[-1]}", flush=True)
            for number in range(options.pairs):
                both = (0, options.connections)
                for connections in both if number % 2 else both[::-1]:
                    step = idle(server, connections, number, options.seconds)
                    idles.append(asyncio.run(step))
                    print(f"round {number + 1}: {idles[-1]}", flush=True)
    report(full, goodputs, recoveries, idles)
    if options.json:
        raw = {
            "capacity_per_s": full,
            "goodput": [asdict(run) for run in goodputs],
            "recovery": [asdict(run) for run in recoveries],
            "idle": [asdict(run) for run in idles],
        }
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    return 0


def report(
    full: float, goodputs: list[Goodput], recoveries: list[Recovery], idles: list[Idle]
) -> None:
    """Medians over the rounds."""
    median = statistics.median
    loads = sorted({run.load for run in goodputs})
    of = {load: [run for run in goodputs if run.load == load] for load in loads}
    good = {load: median(run.good_per_s for run in of[load]) for load in loads}
    served = {load: median(run.good_by_server for run in of[load]) for load in loads}
    print(f"\ncapacity {full:.1f}/s; timeout {TIMEOUT_S * 1e3:.0f} ms; medians of the rounds")
    print(
        f"{'load':>5} {'offered/s':>10} {'good/s':>8} {'of best':>8} {'by server':>10} "
        f"{'of best':>8} {'refused: p50 ms':>16} {'p99 ms':>7} {'hint':>5} {'front us':>9}  reasons"
    )
    for load in loads:
        runs = of[load]
        reasons = sum((Counter(run.reasons) for run in runs), Counter[str]())
        print(
            f"{load:>5g} {median(r.rate for r in runs):>10.1f} "
            f"{good[load]:>8.1f} {good[load] / max(good.values()):>8.1%} "
            f"{served[load]:>10.1f} {served[load] / max(served.values()):>8.1%} "
            f"{median(r.refusal_p50_ms for r in runs):>16.1f} "
            f"{median(r.refusal_p99_ms for r in runs):>7.1f} {median(r.hints for r in runs):>5.0%} "
            f"{median(r.front_us for r in runs):>9.0f}  "
            + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        )
    print(f"\ncallers at {CALM:g}, {STORM:g} and {CALM:g} of the capacity")
    for policy in POLICIES:
        through = [run for run in recoveries if run.policy == policy]
        print(
            f"  {policy:<14} answered {median(r.calm for r in through):.1%}, "
            f"{median(r.storm for r in through):.1%}, {median(r.after for r in through):.1%}; "
            f"{median(r.attempts for r in through):.2f} attempts per call; recovered "
            f"{median(r.recovered_s for r in through):.1f} s after the overload "
            f"({', '.join(f'{r.recovered_s:.1f}' for r in through)})"
        )
    with_, without = (
        [run for run in idles if bool(run.connections) is held] for held in (True, False)
    )
    pairs = zip(
        sorted(with_, key=lambda r: r.round), sorted(without, key=lambda r: r.round), strict=True
    )
    ratios = sorted(a.p99_ms / b.p99_ms for a, b in pairs)
    print(
        f"\nbeside {max(r.connections for r in idles)} idle connections: "
        f"p50 {median(r.p50_ms for r in with_):.2f} ms and "
        f"p99 {median(r.p99_ms for r in with_):.2f} ms, without "
        f"{median(r.p50_ms for r in without):.2f} and {median(r.p99_ms for r in without):.2f} ms; "
        f"p99 ratio {median(ratios):.3f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}, pair by pair)"
    )


if __name__ == "__main__":
    sys.exit(main())

"""The simulator held against the real server: the same arrivals, on-time shares side by side.

    python -m bench.simulate.validate [--arrivals poisson cv4] [--workers 1 2]
                                      [--loads 0.6 0.9 1.2] [--requests 2000] [--out docs]

A model whose forward pass sleeps for as long as a profile says is served under the learned policy.
A client sends requests when the story says, whether or not others were answered, and every one
carries the objective as its timeout. The very moments at which they were sent are then simulated,
with the policy's own allowance for timers.

What lies between the two is measured and allowed for openly. Batches take longer than the profile
says, for the *hop* from the scheduler to the worker and back, and since other programs run: what
they took beyond it, as the server's explanation tells of each, is drawn from by simulated batches.
*Transport*, what a call takes beside its batch where nobody else calls, is added to the objective
where the client judges. The server's own times, of queue and worker, are judged without it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from random import Random
from statistics import median, quantiles

import numpy as np

from bench.simulate import bounds
from bench.simulate.arrivals import PROCESSES
from bench.simulate.profiles import Profile
from bench.simulate.world import simulate
from headrace.aio import AsyncClient
from headrace.errors import ServerError
from headrace.explanations import BatchSample
from headrace.retry import RetryPolicy
from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.testing import ServerProcess

BASE_S = 0.020
ROW_S = 0.004
MOST_ROWS = 16
OBJECTIVE_S = 4 * (BASE_S + ROW_S)
TOLERANCE = 0.02
IDLE_CALLS = 100
LEAD_S = 0.5
"""Between the decision to begin and the first request."""

PREFACE = f"""\
Written by `make bench-sim-validate`. A model whose forward pass sleeps for {BASE_S * 1e3:.0f} ms
and {ROW_S * 1e3:.0f} ms per row is served under the learned policy; requests come as a Poisson
process or in bursts (*cv4*: gamma, coefficient of variation 4), whether or not others were
answered, each with a timeout of {OBJECTIVE_S * 1e3:.0f} ms. The same moments are then simulated.
Shares are of requests on time.

*Measured* is by the client, *by the server* is what that says of its own times in queue and worker,
and the *difference* is between the latter and the simulation: a client that gets dozens of answers
at once, in bursts, is itself late to read them. *Hop* is what batches took beyond those durations
(median, and 99th percentile), on the way to the worker and back or because other programs ran;
simulated batches draw from it. *Transport*, what a call takes beside its batch on an idle server
(median), is added to the timeout where the client judges. The client's *lag* is how late it was to
send (99th percentile); what is simulated are the moments at which it did. What other programs do to
the server beside its batches is not simulated, so the difference grows with them."""

MODEL = f"""\
import time

from headrace_server import Model, TensorSpec


class Paced(Model):
    inputs = [TensorSpec("x", "FP32", [1])]
    outputs = [TensorSpec("y", "FP32", [1])]
    max_batch_size = {MOST_ROWS}

    def forward(self, x):
        until_s = time.perf_counter() + {BASE_S} + {ROW_S} * len(x)
        time.sleep(until_s - time.perf_counter() - 0.0005)
        while time.perf_counter() < until_s:  # a sleep ends late by a tenth of a millisecond
            pass
        return x
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run. Shares of on-time requests: measured by the client, by the server, and simulated.

    `hop_s` and `transport_s` are medians; `late_hop_s` is the 99th percentile of what batches took
    beyond the profile, `lag_s` that of how late the client was to send.
    """

    arrivals: str
    workers: int
    load: float
    requests: int
    measured: float
    by_server: float
    simulated: float
    hop_s: float
    late_hop_s: float
    transport_s: float
    lag_s: float

    @property
    def difference(self) -> float:
        """What the server says of itself, less simulated."""
        return self.by_server - self.simulated


@dataclass(frozen=True, slots=True)
class Call:
    """One request: when it was sent, how late that was, how long until it was answered, and how
    long the server says it had it. The last two are infinite for one that was refused."""

    sent_s: float
    lag_s: float
    latency_s: float = math.inf
    server_s: float = math.inf


@dataclass(frozen=True, slots=True)
class MeasuredProfile(Profile):
    """Batches take any of `beyond_s` more than `BASE_S` and `ROW_S` say; by `duration_s` the
    median."""

    beyond_s: Sequence[float] = ()

    def sample(self, rows: int, length: int, random: Random) -> float:
        """See `Profile.sample`."""
        return BASE_S + ROW_S * rows + random.choice(self.beyond_s)


def profile(beyond_s: Sequence[float] = (0.0,)) -> MeasuredProfile:
    fixed_s = BASE_S + median(beyond_s)
    return MeasuredProfile(
        "paced", MOST_ROWS, lambda rows, length: fixed_s + ROW_S * rows, beyond_s=beyond_s
    )


def compare(arrivals: str, workers: int, load: float, requests: int) -> Comparison:
    """Serve, measure, and simulate what was measured."""
    rate = load * bounds.capacity(profile(), workers=workers, objective_s=OBJECTIVE_S)
    story = [t / rate for t in PROCESSES[arrivals](requests, Random(workers))]
    with tempfile.TemporaryDirectory() as directory:
        repository = Path(directory)
        for name, instances in (("paced", workers), ("idle", 1)):
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "1" / "model.py").write_text(MODEL)
            (repository / name / "config.pbtxt").write_text(
                f"instance_group {{ kind: KIND_CPU count: {instances} }}\n"
            )
        # A new server each time: what it has learned of the rate is of this run alone.
        with ServerProcess(repository, "--cache-dir", "none") as server:
            calls, samples, idle_s = asyncio.run(_measure(server.grpc_address, story))
    beyond = [s.duration_s - BASE_S - ROW_S * s.rows for s in samples]
    costs = profile(beyond)
    transport_s = max(0.0, median(idle_s) - costs.duration_s(1, 0))
    outcome = simulate(
        AdaptivePolicy(MOST_ROWS, costs.sweep()),
        sorted(call.sent_s for call in calls),
        costs,
        workers=workers,
        objective_s=OBJECTIVE_S,
    )
    return Comparison(
        arrivals,
        workers,
        load,
        requests,
        sum(call.latency_s <= OBJECTIVE_S + transport_s for call in calls) / requests,
        sum(call.server_s <= OBJECTIVE_S for call in calls) / requests,
        outcome.on_time_share,
        median(beyond),
        quantiles(beyond, n=100)[-1],
        transport_s,
        quantiles((call.lag_s for call in calls), n=100)[-1],
    )


async def _measure(
    address: str, story: Sequence[float]
) -> tuple[list[Call], Sequence[BatchSample], list[float]]:
    """What became of the requests, how single batches went, and latencies of calls that find
    nobody else."""
    x = np.zeros((1, 1), dtype=np.float32)
    asked = {"timeout": round(OBJECTIVE_S * 1e6), "headrace_timing": True}
    async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
        idle_s = []
        for _ in range(IDLE_CALLS):
            started = time.perf_counter()
            await client.infer("idle", {"x": x})
            idle_s.append(time.perf_counter() - started)
        begin = time.perf_counter() + LEAD_S

        async def call(due_s: float) -> Call:
            sent_s = time.perf_counter() - begin
            lag_s = sent_s - due_s
            try:
                result = await client.infer("paced", {"x": x}, parameters=asked)
            except ServerError:
                return Call(sent_s, lag_s)
            latency_s = time.perf_counter() - begin - sent_s
            assert result.timing is not None
            return Call(sent_s, lag_s, latency_s, result.timing.server_s)

        tasks = []
        for due_s in story:
            await asyncio.sleep(begin + due_s - time.perf_counter())
            tasks.append(asyncio.create_task(call(due_s)))
        calls = await asyncio.gather(*tasks)
        minute = (await client.explain("paced")).last_minute
    return calls, minute.samples, idle_s


def report(comparisons: Sequence[Comparison]) -> str:
    lines = [
        "| arrivals | workers | load | measured | by the server | simulated | difference | hop "
        "| its p99 | transport | client's lag |",
        "|" + " --- |" * 11,
    ]
    lines += [
        f"| {c.arrivals} | {c.workers} | {c.load:g} | {c.measured:.2%} | {c.by_server:.2%} "
        f"| {c.simulated:.2%} | {100 * c.difference:+.2f} points | {c.hop_s * 1e3:.2f} ms "
        f"| {c.late_hop_s * 1e3:.2f} ms | {c.transport_s * 1e3:.2f} ms | {c.lag_s * 1e3:.2f} ms |"
        for c in comparisons
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arrivals", nargs="+", choices=PROCESSES, default=["poisson", "cv4"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.9, 1.2])
    parser.add_argument("--requests", type=int, default=2_000, help="per run")
    parser.add_argument("--out", type=Path, help="directory to write to (default: write nothing)")
    options = parser.parse_args(arguments)
    cases = list(product(options.arrivals, options.workers, options.loads))
    comparisons = []
    for arrivals, workers, load in cases:
        comparisons.append(compare(arrivals, workers, load, options.requests))
        print(f"{len(comparisons)} of {len(cases)}", file=sys.stderr, flush=True)
    text = report(comparisons)
    print(text)
    if options.out:
        raw = json.dumps([asdict(c) for c in comparisons], indent=1)
        (options.out / "simulation-validation.json").write_text(raw + "\n")
        (options.out / "simulation-validation.md").write_text(
            f"# The simulator against the server\n\n{PREFACE}\n\n{text}\n"
        )
    return int(any(abs(c.difference) > TOLERANCE for c in comparisons))


if __name__ == "__main__":
    sys.exit(main())

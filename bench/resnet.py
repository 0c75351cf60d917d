"""A network where batching gains nothing, with batching on and off: nobody may be made to wait.

    python -m bench.resnet [--loads 0.3 0.6 0.8] [--rounds 10] [--seconds 8] [--size 224]

ResNet-18 (He et al., 2015; random weights) on images of 224 x 224, one worker, one torch thread. It
is served under the learned policy and, by two servers, one row at a time, and gets the same
arrivals, in turn, round after round: closed loop with 16 in flight, then open loop, Poisson, at
shares of what one at a time can carry, from light to heavy: light load right behind full batches is
what a learned policy finds hardest. Who begins changes with the round, so that a machine that slows
down favours nobody, and each round has servers of its own: of two processes that are the same, one
may be slower by 3 % for as long as it lives. The two servers that are the same show what the
machine alone makes of such a comparison; ours is set beside both.

A machine that changes its speed by a third within seconds hides what a policy costs, which is made
of two parts. What single rows take is compared call by call, at the end of the round: at so short a
distance all servers meet the same machine. And each open loop is set beside what the mean latency
would have been had the same requests ridden one by one, in order of arrival, each for as long as
those took that did ride alone in that run. Both together are the *mean at one speed*.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from bench.simulate.capacity import STUDENT
from headrace.aio import AsyncClient
from headrace.answers import Timing
from headrace_server.testing import ServerProcess

MODEL = "resnet18"
POLICIES = {
    "learned": "",
    "no batching": "max_batch_size: 1",
    "the same again": "max_batch_size: 1",
}
CLOSED = 16
"""Callers of the closed loop."""

ALTERNATING, PAUSE_S = 60, 0.01
"""Calls of one for each server, and the time before each, in which the one before is tidied up."""


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(wider)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm_again = nn.BatchNorm2d(wider)
        plain = channels == wider and stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if not plain:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm(self.first(x)))
        return torch.relu(self.norm_again(self.second(inner)) + self.shortcut(x))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [
        Block(channels, wider, 1 if channels == wider else 2)
        for channels, wider in pairwise(widths)
    ]
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head).eval()


def build_repository(repository: Path, config: str, size: int) -> None:
    """Write `resnet18/1/model.pt2`, batch dimension dynamic up to 16."""
    directory = repository / MODEL / "1"
    directory.mkdir(parents=True)
    example = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", max=16)
    program = torch.export.export(resnet18(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, directory / "model.pt2")
    if config:
        (repository / MODEL / "config.pbtxt").write_text(config + "\n")


@dataclass(frozen=True, slots=True)
class Call:
    """One answered request of an open loop: when it was due, how long its caller waited from then
    on, in seconds, and how it went in the server."""

    due_s: float
    latency_s: float
    timing: Timing


class Loop(NamedTuple):
    """What one server made of one loop (load 0: closed): latencies, and the time they are of, in
    seconds; the calls of an open one."""

    policy: str
    load: float
    latencies: list[float]
    seconds: float
    calls: Sequence[Call] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One policy at one load (0: closed loop) for one round.

    `single_ms` is what a row took on the mean when calls of one alternated between the servers of
    the round. `one_by_one_ms` is the mean latency if all had ridden alone, as fast as those that
    did; None in a closed loop, and where nobody did. `elsewhere_ms` is the same at the speed of
    single rows without batching.
    """

    policy: str
    load: float
    round: int
    images_per_s: float
    mean_ms: float
    p99_ms: float
    single_ms: float
    one_by_one_ms: float | None = None
    elsewhere_ms: float | None = None


async def image(client: AsyncClient) -> dict[str, np.ndarray]:
    """The input of every call: one image, of noise."""
    (given,) = (await client.model_metadata(MODEL)).inputs
    noise = np.random.default_rng(0).random((1, *given.shape[1:]), dtype=np.float32)
    return {given.name: noise}


async def in_closed_loop(address: str, seconds: float) -> tuple[list[float], float]:
    """The latencies of the requests that were begun within the time, and how long it took until
    the last answer, in seconds."""
    latencies: list[float] = []
    async with AsyncClient(address) as client:
        inputs = await image(client)
        began_s = time.perf_counter()

        async def caller() -> None:
            while (started := time.perf_counter()) < began_s + seconds:
                await client.infer(MODEL, inputs, timeout=60.0)
                latencies.append(time.perf_counter() - started)

        await asyncio.gather(*(caller() for _ in range(CLOSED)))
        return latencies, time.perf_counter() - began_s


async def in_open_loop(address: str, rate: float, seconds: float, seed: int) -> list[Call]:
    """What became of the requests, the first of which is due at once."""
    random = Random(seed)
    calls: list[Call] = []
    loop = asyncio.get_running_loop()
    async with AsyncClient(address) as client:
        inputs = await image(client)
        began = loop.time()

        async def one(due_s: float) -> None:
            timing = await timed(client, inputs)
            calls.append(Call(due_s, loop.time() - began - due_s, timing))

        async with asyncio.TaskGroup() as tasks:
            due_s = 0.0
            while due_s < seconds:
                await asyncio.sleep(began + due_s - loop.time())
                tasks.create_task(one(due_s))
                due_s += random.expovariate(rate)
    return calls


async def timed(client: AsyncClient, inputs: dict[str, np.ndarray]) -> Timing:
    """Call once; returns how that went in the server."""
    answer = await client.infer(MODEL, inputs, parameters={"headrace_timing": True}, timeout=60.0)
    assert answer.timing is not None
    return answer.timing


async def alternate(addresses: Mapping[str, str], count: int, first: int) -> dict[str, float]:
    """What a row takes in the worker of each of these servers, in seconds: the mean of so many
    calls of one, which go to all servers in turn, one after another."""
    took_s: dict[str, list[float]] = {policy: [] for policy in addresses}
    async with AsyncExitStack() as stack:
        clients = {
            policy: await stack.enter_async_context(AsyncClient(address))
            for policy, address in addresses.items()
        }
        inputs = await image(next(iter(clients.values())))
        turns = list(clients.items())
        for number in range(first, first + count):
            begins = number % len(turns)
            for policy, client in turns[begins:] + turns[:begins]:
                await asyncio.sleep(PAUSE_S)
                took_s[policy].append((await timed(client, inputs)).compute_s)
    return {policy: statistics.fmean(times_s) for policy, times_s in took_s.items()}


def one_by_one(calls: Sequence[Call], slower: float = 1.0) -> float | None:
    """The mean latency in seconds if all had ridden alone, in order of arrival, each for as long as
    those on the mean that did, over `slower`; None where nobody did. What a call takes besides
    the queue and the worker stays as it was."""
    alone_s = [call.timing.compute_s for call in calls if call.timing.batch_rows == 1]
    if not alone_s:
        return None
    single_s = statistics.fmean(alone_s) / slower
    besides_s = statistics.fmean(call.latency_s - call.timing.server_s for call in calls)
    free_s, latencies_s = 0.0, []
    for due_s in sorted(call.due_s for call in calls):
        free_s = max(free_s, due_s) + single_s
        latencies_s.append(free_s - due_s)
    return statistics.fmean(latencies_s) + besides_s


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.8])
    parser.add_argument("--rounds", type=int, default=10, help="2 to 10")
    parser.add_argument("--seconds", type=float, default=8.0, help="per run")
    parser.add_argument("--size", type=int, default=224, help="of the images; 32 at least")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    options = parser.parse_args(arguments)
    if not 2 <= options.rounds <= len(STUDENT) + 1:
        parser.error(f"--rounds must be 2 to {len(STUDENT) + 1}, got {options.rounds}")
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory:
        repositories = {policy: Path(directory) / policy.replace(" ", "-") for policy in POLICIES}
        for policy, config in POLICIES.items():
            build_repository(repositories[policy], config, options.size)
        with ServerProcess(repositories["no batching"], "--cores", "1") as single:
            seconds = min(5.0, options.seconds)
            latencies, took_s = asyncio.run(in_closed_loop(single.grpc_address, seconds))
            rate = len(latencies) / took_s
        for number in range(options.rounds):
            for run in one_round(repositories, options.loads, rate, number, options.seconds):
                print(f"round {number + 1}, {shown(run)}", flush=True)
                runs.append(run)
    report(runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def one_round(
    repositories: Mapping[str, Path],
    loads: Sequence[float],
    rate: float,
    number: int,
    seconds: float,
) -> list[Run]:
    """All policies in turn, each on a server of its own, first in a closed loop."""
    loops: list[Loop] = []
    with ExitStack() as servers:
        addresses = {
            policy: servers.enter_context(ServerProcess(repository, "--cores", "1")).grpc_address
            for policy, repository in repositories.items()
        }
        begins = number % len(addresses)
        turns = list(addresses.items())
        turns = turns[begins:] + turns[:begins]
        for policy, address in turns:
            latencies, took_s = asyncio.run(in_closed_loop(address, seconds))
            loops.append(Loop(policy, 0.0, latencies, took_s))
        for load, (policy, address) in product(loads, turns):
            calls = asyncio.run(in_open_loop(address, load * rate, seconds, number))
            latencies = [call.latency_s for call in calls]
            loops.append(Loop(policy, load, latencies, seconds, calls))
        single_s = asyncio.run(alternate(addresses, ALTERNATING, number))
    _, *others = repositories
    usual_s = statistics.geometric_mean(single_s[policy] for policy in others)
    return [run_of(loop, number, single_s[loop.policy], usual_s) for loop in loops]


def run_of(loop: Loop, number: int, single_s: float, usual_s: float) -> Run:
    """What is kept of a loop; `single_s` is what a row takes in its server, `usual_s` without
    batching."""
    as_fast, elsewhere = one_by_one(loop.calls), one_by_one(loop.calls, single_s / usual_s)
    return Run(
        loop.policy,
        loop.load,
        number,
        len(loop.latencies) / loop.seconds,
        statistics.mean(loop.latencies) * 1e3,
        float(np.percentile(loop.latencies, 99)) * 1e3,
        single_s * 1e3,
        as_fast and as_fast * 1e3,
        elsewhere and elsewhere * 1e3,
    )


def shown(run: Run) -> str:
    load = f"load {run.load:g}" if run.load else f"{CLOSED} in flight"
    return (
        f"{load:>12}  {run.policy:<14} {run.images_per_s:6.1f}/s  "
        f"mean {run.mean_ms:7.1f} ms  p99 {run.p99_ms:7.1f} ms"
    )


def report(runs: list[Run]) -> None:
    """What learned does to latency and throughput: means over the rounds, pair by pair. Then the
    two parts of the latency, the speed of single rows and what the policy made of it, and both."""
    columns: dict[str, Callable[[Run], float | None]] = {
        "mean latency": lambda run: run.mean_ms,
        "throughput": lambda run: run.images_per_s,
        "single rows": lambda run: None if run.load else run.single_ms,
        "over one by one": lambda run: run.one_by_one_ms and run.mean_ms / run.one_by_one_ms,
        "mean at one speed": lambda run: run.elsewhere_ms and run.mean_ms / run.elsewhere_ms,
    }
    print("\n        load  " + " " * 25 + "".join(f"  {name:<22}" for name in columns))
    for load in sorted({run.load for run in runs}):
        learned, alone, again = (
            sorted((r for r in runs if (r.policy, r.load) == (policy, load)), key=lambda r: r.round)
            for policy in POLICIES
        )
        label = f"{load:g}" if load else f"{CLOSED} in flight"
        for what, ours, others in (
            ("learned over no batching", learned, (alone, again)),
            ("no batching over the same", again, (alone,)),
        ):
            ratios = [_ratios(ours, others, value) for value in columns.values()]
            cells = "".join(f"  {interval(r) if len(r) > 1 else '':<22}" for r in ratios)
            print(f"{label:>12}  {what:<25}{cells}".rstrip())


def _ratios(
    runs: Sequence[Run], others: Sequence[Sequence[Run]], value: Callable[[Run], float | None]
) -> list[float]:
    """Of each round in which all have one: the value over the geometric mean of the others'."""
    found = []
    for together in zip(runs, *others, strict=True):
        mine, *theirs = (value(run) for run in together)
        known = [their for their in theirs if their is not None]
        if mine is not None and len(known) == len(theirs):
            found.append(mine / statistics.geometric_mean(known))
    return found


def interval(ratios: list[float]) -> str:
    """The geometric mean of one ratio per round, and its 95 % confidence interval."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = statistics.fmean(logs)
    reach = STUDENT[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
    low, mean, high = (math.exp(middle + side * reach) for side in (-1, 0, 1))
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    sys.exit(main())

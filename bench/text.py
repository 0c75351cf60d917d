"""Real sentences through one server under several batching policies, closed loop, side by side.

    python -m bench.text [--concurrency 1 4 16 64 256] [--rounds 3] [--seconds 12]
                         [--alone 300] [--against "first come, 32" "no batching"]

The same encoder (all-MiniLM-L6-v2, one worker, one torch thread) is served four times over: with
the learned policy, with `dynamic_batching` first come first served up to 32 rows, at once and after
a delay, and one row at a time. A delay of 5 ms brings all callers into one batch where there are no
more than 32; without one, two halves of them take turns, which pads less. All get the same
sentences in the same order from the same number of callers, in turn, round after round; only the
server under test has work. With one caller, the same sentences also go through the model itself, in
this process, to see what the way through the server adds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from examples.sentences.build import build
from examples.sentences.corpus import sentences
from examples.sentences.encoder import Tokens, load_encoder

from headrace import Client
from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess

POLICIES = {
    "learned": "",
    "first come, 32": "max_batch_size: 32 dynamic_batching { }",
    "first come, 5 ms": (
        "max_batch_size: 32 dynamic_batching { max_queue_delay_microseconds: 5000 }"
    ),
    "no batching": "max_batch_size: 1",
}
MODEL = "sentences"


@dataclass(frozen=True, slots=True)
class Run:
    """One policy at one concurrency for one round."""

    policy: str
    concurrency: int
    round: int
    sentences_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Alone:
    """Mean milliseconds of the same sentences, one at a time: `direct` is the model called in
    this process, tokenizer and all; `compute` what the worker took of it, `total` what the caller
    waited for."""

    round: int
    direct_tokenize_ms: float
    direct_forward_ms: float
    compute_ms: float
    total_ms: float


def build_repository(repository: Path, config: str) -> None:
    build(repository / MODEL / "1")
    if config:
        (repository / MODEL / "config.pbtxt").write_text(config + "\n")


async def drive(address: str, texts: list[str], concurrency: int, seconds: float) -> list[float]:
    """Latencies, in seconds, of the requests that were answered within the time."""
    todo = cycle(np.array([[text.encode()]], dtype=object) for text in texts)
    latencies: list[float] = []

    async with AsyncClient(address) as client:
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < end:
                await client.infer(MODEL, {"text": next(todo)}, timeout=120.0)
                if (now := time.perf_counter()) <= end:
                    latencies.append(now - started)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
    return latencies


def measure(
    address: str, policy: str, concurrency: int, number: int, texts: list[str], seconds: float
) -> Run:
    latencies = asyncio.run(drive(address, texts, concurrency, seconds))
    p50, p99 = np.percentile(latencies, [50, 99])
    return Run(policy, concurrency, number, len(latencies) / seconds, p50 * 1e3, p99 * 1e3)


def measure_alone(address: str, repository: Path, number: int, texts: list[str]) -> Alone:
    """Each sentence through the model itself and through the server, in turn."""
    directory = repository / MODEL / "1"
    tokenize, encode = Tokens(directory), load_encoder(directory, "cpu")
    torch.set_num_threads(1)
    tokenizing, forward, compute, total = [], [], [], []
    with Client(address) as client, torch.inference_mode():
        for text in texts:
            started = time.perf_counter()
            tokens = tokenize([text])
            tokenized = time.perf_counter()
            encode(*tokens)
            done = time.perf_counter()
            tokenizing.append(tokenized - started)
            forward.append(done - tokenized)
            given = {"text": np.array([[text.encode()]], dtype=object)}
            started = time.perf_counter()
            timing = client.infer(MODEL, given, parameters={"headrace_timing": True}).timing
            total.append(time.perf_counter() - started)
            assert timing is not None
            compute.append(timing.compute_s)
    means = (statistics.mean(times) * 1e3 for times in (tokenizing, forward, compute, total))
    return Alone(number, *means)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="per run")
    parser.add_argument("--alone", type=int, default=300, help="sentences that go one at a time")
    others = [policy for policy in POLICIES if policy != "learned"]
    parser.add_argument("--against", nargs="+", choices=others, default=others)
    parser.add_argument("--json", type=Path, help="write every run to this file")
    options = parser.parse_args(arguments)
    texts = sentences()
    runs: list[Run] = []
    alone: list[Alone] = []
    with tempfile.TemporaryDirectory() as directory:
        servers: dict[str, ServerProcess] = {}
        try:
            for name in ("learned", *options.against):
                repository = Path(directory) / name.replace(" ", "-")
                build_repository(repository, POLICIES[name])
                servers[name] = ServerProcess(repository, "--cores", "1").start()
            for server in servers.values():  # warm-up, not counted
                asyncio.run(drive(server.grpc_address, texts, 16, min(3.0, options.seconds)))
            for number in range(options.rounds):
                learned = servers["learned"].grpc_address
                few = texts[: options.alone]
                alone.append(measure_alone(learned, Path(directory) / "learned", number, few))
                print(f"round {number + 1}, alone: {alone[-1]}", flush=True)
                for concurrency in options.concurrency:
                    # Every round goes on where the last one ended in the same shuffled sentences.
                    start = number * 997
                    chosen = list(islice(cycle(texts), start, start + len(texts)))
                    for name, server in servers.items():
                        run = measure(
                            server.grpc_address, name, concurrency, number, chosen, options.seconds
                        )
                        print(
                            f"round {number + 1}, {concurrency:>3} in flight, {name:<16} "
                            f"{run.sentences_per_s:6.1f}/s  p50 {run.p50_ms:7.1f} ms  "
                            f"p99 {run.p99_ms:7.1f} ms",
                            flush=True,
                        )
                        runs.append(run)
        finally:
            for server in servers.values():
                server.stop()
    report(runs)
    report_alone(alone)
    if options.json:
        raw = {"runs": [asdict(run) for run in runs], "alone": [asdict(run) for run in alone]}
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    return 0


def report(runs: list[Run]) -> None:
    """Medians over the rounds, and the ratios round by round."""
    print(
        f"\n{'in flight':>9}  {'policy':<16} {'per s':>7} {'p50 ms':>8} {'p99 ms':>8}   learned is"
    )
    for concurrency in sorted({run.concurrency for run in runs}):
        ours = [r for r in runs if (r.policy, r.concurrency) == ("learned", concurrency)]
        for policy in dict.fromkeys(run.policy for run in runs):
            theirs = [r for r in runs if (r.policy, r.concurrency) == (policy, concurrency)]
            ratios = sorted(
                a.sentences_per_s / b.sentences_per_s for a, b in zip(ours, theirs, strict=True)
            )
            print(
                f"{concurrency:>9}  {policy:<16} "
                f"{statistics.median(r.sentences_per_s for r in theirs):7.1f} "
                f"{statistics.median(r.p50_ms for r in theirs):8.1f} "
                f"{statistics.median(r.p99_ms for r in theirs):8.1f}   "
                + (
                    f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                    if policy != "learned"
                    else ""
                )
            )


def report_alone(runs: list[Alone]) -> None:
    """What one caller waits for, beside the model called directly."""
    ratios = sorted(run.compute_ms / run.direct_forward_ms for run in runs)
    print(
        f"\none at a time: the worker takes {statistics.median(ratios):.3f} times "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f}) what the model called directly takes; "
        f"medians: direct {statistics.median(r.direct_forward_ms for r in runs):.2f} ms "
        f"and {statistics.median(r.direct_tokenize_ms for r in runs):.2f} ms for its tokens, "
        f"worker {statistics.median(r.compute_ms for r in runs):.2f} ms, "
        f"caller {statistics.median(r.total_ms for r in runs):.2f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Real sentences through one server under several batching policies, closed loop, side by side.

    python -m bench.text [--concurrency 1 4 16 64 256] [--rounds 3] [--seconds 12]

The same encoder (all-MiniLM-L6-v2, one worker, one torch thread) is served three times over: with
the learned policy, with `dynamic_batching` first come first served up to 32 rows, and one row at a
time. All three get the same sentences in the same order from the same number of callers, in turn,
round after round; only the server under test has work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from examples.sentences.build import build
from examples.sentences.corpus import sentences

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess

POLICIES = {
    "learned": "",
    "first come, 32": "max_batch_size: 32 dynamic_batching { }",
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="per run")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    options = parser.parse_args()
    texts = sentences()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory:
        servers: dict[str, ServerProcess] = {}
        try:
            for name, config in POLICIES.items():
                repository = Path(directory) / name.replace(" ", "-")
                build_repository(repository, config)
                servers[name] = ServerProcess(repository, "--cores", "1").start()
            for server in servers.values():  # warm-up, not counted
                asyncio.run(drive(server.grpc_address, texts, 16, 3.0))
            for number in range(options.rounds):
                for concurrency in options.concurrency:
                    # Every round goes on where the last one ended in the same shuffled sentences.
                    start = number * 997
                    chosen = list(islice(cycle(texts), start, start + len(texts)))
                    for name, server in servers.items():
                        run = measure(
                            server.grpc_address, name, concurrency, number, chosen, options.seconds
                        )
                        print(
                            f"round {number + 1}, {concurrency:>3} in flight, {name:<14} "
                            f"{run.sentences_per_s:6.1f}/s  p50 {run.p50_ms:7.1f} ms  "
                            f"p99 {run.p99_ms:7.1f} ms",
                            flush=True,
                        )
                        runs.append(run)
        finally:
            for server in servers.values():
                server.stop()
    report(runs)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def report(runs: list[Run]) -> None:
    """Medians over the rounds, and the ratios round by round."""
    print(
        f"\n{'in flight':>9}  {'policy':<14} {'per s':>7} {'p50 ms':>8} {'p99 ms':>8}   learned is"
    )
    for concurrency in sorted({run.concurrency for run in runs}):
        ours = [r for r in runs if (r.policy, r.concurrency) == ("learned", concurrency)]
        for policy in POLICIES:
            theirs = [r for r in runs if (r.policy, r.concurrency) == (policy, concurrency)]
            ratios = sorted(
                a.sentences_per_s / b.sentences_per_s for a, b in zip(ours, theirs, strict=True)
            )
            print(
                f"{concurrency:>9}  {policy:<14} "
                f"{statistics.median(r.sentences_per_s for r in theirs):7.1f} "
                f"{statistics.median(r.p50_ms for r in theirs):8.1f} "
                f"{statistics.median(r.p99_ms for r in theirs):8.1f}   "
                + (
                    f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                    if policy != "learned"
                    else ""
                )
            )


if __name__ == "__main__":
    sys.exit(main())

"""How long the learned policy thinks about a batch with a thousand requests in the queue."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from statistics import median
from time import thread_time

from bench.simulate.arrivals import poisson
from bench.simulate.profiles import PROFILES, Profile
from bench.simulate.world import simulate
from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.policy import Decision, Formation, Opening
from headrace_server.core.queue import Queue, QueueLimits

QUEUED = 1_000
WARM_UP = 20
"""Decisions that are left out at the beginning."""
OVERLOAD = 1.3


@dataclass(frozen=True, slots=True)
class DecisionTimes:
    """Of one kind of queue. Microseconds; `share_p99` is in units of the batch decided about.

    Of CPU time, so that what else runs on the machine does not count; medians over the rounds.
    """

    queue: str
    decisions: int
    median_us: float
    p99_us: float
    share_p99: float


class StopwatchPolicy(AdaptivePolicy):
    """The learned policy, timed where it decides about a queue of `QUEUED`, give or take a
    batch. `taken` holds seconds, and as a share of the batch where one was formed."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile.most_rows, profile.sweep())
        self._profile = profile
        self.taken: list[tuple[float, float]] = []

    def form(self, queue: Queue, opening: Opening) -> Decision:
        """See `BatchPolicy.form`."""
        full = len(queue) >= QUEUED - 2 * self.most_rows
        started = thread_time()
        decision = super().form(queue, opening)
        taken_s = thread_time() - started
        if full:
            share = math.nan
            if isinstance(decision, Formation):
                longest = max(request.length for request in decision.requests)
                share = taken_s / self._profile.duration_s(decision.rows, longest)
            self.taken.append((taken_s, share))
        return decision


def measure(*, requests: int, rounds: int) -> list[DecisionTimes]:
    """Equal sizes without and with deadlines, and mixed lengths, on one worker and on four."""
    kinds = [
        ("one size, no deadlines", "gpu", 1, False),
        ("one size, deadlines", "gpu", 1, True),
        ("one size, deadlines, 4 workers", "gpu", 4, True),
        ("mixed lengths, no deadlines", "text", 1, False),
        ("mixed lengths, deadlines", "text", 1, True),
    ]
    return [_measure(*kind, requests=requests, rounds=rounds) for kind in kinds]


def _measure(
    queue: str, name: str, workers: int, deadlines: bool, *, requests: int, rounds: int
) -> DecisionTimes:
    runs = []
    for seed in range(rounds):
        taken = _run(PROFILES[name], workers, deadlines, requests, seed)[WARM_UP:]
        shares = [share for _, share in taken if share == share]
        seconds = [s for s, _ in taken]
        runs.append((len(taken), median(seconds), _p99(seconds), _p99(shares)))
    count, middle_s, p99_s, share = (median(column) for column in zip(*runs, strict=True))
    return DecisionTimes(queue, int(count), middle_s * 1e6, p99_s * 1e6, share)


def _run(
    profile: Profile, workers: int, deadlines: bool, requests: int, seed: int
) -> list[tuple[float, float]]:
    """More comes than can be served, to a queue that holds `QUEUED` and refuses the rest. With
    deadlines, whoever stood in all of it is just about late."""
    random = Random(seed)
    rows = profile.most_rows
    capacity = workers * rows / profile.duration_s(rows, profile.typical)
    policy = StopwatchPolicy(profile)
    with _no_collection():
        simulate(
            policy,
            [t / (OVERLOAD * capacity) for t in poisson(requests, random)],
            profile,
            workers=workers,
            objective_s=QUEUED / capacity if deadlines else math.inf,
            limits=QueueLimits(max_requests=QUEUED),
            lengths=[profile.draw_length(random) for _ in range(requests)],
        )
    return policy.taken


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

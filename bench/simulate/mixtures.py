"""Requests that are not all alike: sentences of any length, and a few of another shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random
from statistics import fmean

from bench.simulate import bounds
from bench.simulate.arrivals import PROCESSES
from bench.simulate.callers import ClosedLoop
from bench.simulate.profiles import GPU, TEXT, Profile
from bench.simulate.world import serve, simulate
from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.policy import BatchPolicy, StaticPolicy, StaticSettings

OURS, AT_ONCE, DELAYED, ALONE = "learned", "first come", "first come, 5 ms", "no batching"
IN_FLIGHT = (1, 4, 16, 64, 256)
TURN_S = 0.4e-3
"""What the client of `make bench-text` and the tokenizer take of a call."""

FEW = 40
"""One request in so many is of the other kind."""
HEADLINE_S = 0.025
LOADS = (0.3, 0.6, 0.9)


@dataclass(frozen=True, slots=True)
class Closed:
    """Sentences in a closed loop on one worker, means over the seeds: sentences per second, and
    the 99th percentile of the latency in seconds."""

    in_flight: int
    policy: str
    rate: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of requests under one policy: mean latency of those that were answered, in seconds,
    and the share of those that came that was on time."""

    latency_s: float
    on_time: float


@dataclass(frozen=True, slots=True)
class Minority:
    """A few requests of another batch key among many, under the learned policy and dispatched at
    once."""

    process: str
    workers: int
    load: float
    many: Kind
    few: Kind
    many_at_once: Kind
    few_at_once: Kind


@dataclass(frozen=True, slots=True)
class Mixtures:
    """All that was found of requests that are not alike."""

    closed: list[Closed]
    minorities: list[Minority]

    def over(self, policy: str, in_flight: int) -> float:
        """Sentences per second of the learned policy over those of this one."""
        return self._of(OURS, in_flight).rate / self._of(policy, in_flight).rate

    def p99_over(self, policy: str, in_flight: int) -> float:
        """The 99th percentile of the latency, likewise."""
        return self._of(OURS, in_flight).p99_s / self._of(policy, in_flight).p99_s

    def of_best_so_far(self, in_flight: int) -> float:
        """Sentences per second of the learned policy over the most of it with fewer in flight."""
        fewer = [self._of(OURS, n).rate for n in IN_FLIGHT if n < in_flight]
        return self._of(OURS, in_flight).rate / max(fewer)

    def _of(self, policy: str, in_flight: int) -> Closed:
        return next(c for c in self.closed if (c.policy, c.in_flight) == (policy, in_flight))


def measure(*, seconds: float, requests: int, seeds: int) -> Mixtures:
    """Closed loops of so many simulated seconds, open ones of so many requests."""
    return Mixtures(
        closed_loops(seconds=seconds, seeds=seeds), minorities(requests=requests, seeds=seeds)
    )


def closed_loops(*, seconds: float, seeds: int) -> list[Closed]:
    """All concurrencies under all policies, for so many simulated seconds each."""
    found = []
    for in_flight, (name, policy) in product(IN_FLIGHT, _policies(TEXT).items()):
        runs = [_closed(policy(), in_flight, seconds, seed) for seed in range(seeds)]
        rates, p99s = zip(*runs, strict=True)
        found.append(Closed(in_flight, name, fmean(rates), fmean(p99s)))
    return found


def minorities(*, requests: int, seeds: int) -> list[Minority]:
    """Bursts and none, one worker and two, light load and heavy."""
    found = []
    for point in product(("poisson", "cv4"), (1, 2), LOADS):
        ours, at_once = (
            _kinds(_policies(GPU)[name], *point, requests=requests, seeds=seeds)
            for name in (OURS, AT_ONCE)
        )
        found.append(Minority(*point, *ours, *at_once))
    return found


def _policies(profile: Profile) -> dict[str, Callable[[], BatchPolicy]]:
    rows = profile.most_rows
    delayed = StaticSettings(rows, max_delay_s=0.005)
    return {
        OURS: partial(AdaptivePolicy, rows, profile.sweep(), timer_s=0.0),
        AT_ONCE: partial(StaticPolicy, StaticSettings(rows)),
        DELAYED: partial(StaticPolicy, delayed),
        ALONE: partial(StaticPolicy, StaticSettings(1)),
    }


def _closed(policy: BatchPolicy, in_flight: int, seconds: float, seed: int) -> tuple[float, float]:
    callers = ClosedLoop(
        in_flight, partial(TEXT.length, Random(seed)), turn_s=TURN_S, end_s=seconds
    )
    serve(policy, callers, TEXT, workers=1)
    latencies_s = sorted(callers.latencies_s)
    return len(latencies_s) / seconds, latencies_s[int(0.99 * (len(latencies_s) - 1))]


def _kinds(
    policy: Callable[[], BatchPolicy],
    process: str,
    workers: int,
    load: float,
    *,
    requests: int,
    seeds: int,
) -> tuple[Kind, Kind]:
    """The many and the few."""
    rate = load * bounds.capacity(GPU, workers=workers, objective_s=HEADLINE_S)
    offered = {False: 0, True: 0}
    latencies_s: dict[Hashable, list[float]] = {False: [], True: []}
    for seed in range(seeds):
        arrivals = [t / rate for t in PROCESSES[process](requests, Random(seed))]
        random = Random(seed)
        few = [random.randrange(FEW) == 0 for _ in range(requests)]
        run = simulate(policy(), arrivals, GPU, workers=workers, objective_s=HEADLINE_S, keys=few)
        for kind in offered:
            offered[kind] += few.count(kind)
            latencies_s[kind] += run.latencies_by_key[kind]
    many, few_ones = (
        Kind(
            fmean(latencies_s[kind]),
            sum(latency_s <= HEADLINE_S for latency_s in latencies_s[kind]) / count,
        )
        for kind, count in offered.items()
    )
    return many, few_ones

"""Requests that are not all alike: sentences of any length, a few of another shape, in a hurry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random
from statistics import fmean
from typing import TypeVar

import numpy as np

from bench.simulate import bounds
from bench.simulate.arrivals import PROCESSES
from bench.simulate.callers import ClosedLoop, InAHurry
from bench.simulate.policies import first_come, learned, one_by_one
from bench.simulate.profiles import GPU, PROFILES, Profile
from bench.simulate.world import play, simulate
from headrace_server.core.policy import BatchPolicy

T = TypeVar("T")

OURS, AT_ONCE, DELAYED, ALONE = "learned", "first come", "first come, 5 ms", "no batching"
IN_FLIGHT = (1, 4, 16, 64, 256)


@dataclass(frozen=True, slots=True)
class Setup:
    """A model, and how long each caller takes from an answer to the next request: the `turn_s` of a
    `ClosedLoop`."""

    profile: str
    turn_s: float

    def __str__(self) -> str:
        return f"{self.profile}, turns of {self.turn_s * 1e3:g} ms"

    @property
    def costs(self) -> Profile:
        """What batches take."""
        return PROFILES[self.profile]

    @property
    def policies(self) -> dict[str, Callable[[], BatchPolicy]]:
        """Makers of the policies that are set side by side."""
        return {
            OURS: partial(learned, self.costs),
            AT_ONCE: partial(first_come, self.costs),
            DELAYED: partial(first_come, self.costs, 0.005),
            ALONE: one_by_one,
        }


SETUPS = (Setup("text", 0.4e-3), Setup("text", 1.4e-3), Setup("text-xeon", 1.4e-3))
"""A fast client; the client, the front and the tokenizer of `make bench-text`, which share one core
and take 0.27, 0.68 and 0.47 ms of each call; and these beside the model on the machine on which
that was measured."""

FEW = 40
"""One request in so many is of the other kind."""
OBJECTIVE_S = 0.025
LOADS = (0.3, 0.6, 0.9)

HURRIED, PATIENT = 2.5, 12.0
"""Objectives in durations of one request alone."""
IN_A_HURRY = 0.05
HURRY_LOADS = (0.7, 0.85, 1.0)


@dataclass(frozen=True, slots=True)
class Closed:
    """Sentences in a closed loop on one worker, means over the seeds: sentences per second, and
    the 99th percentile of the latency in seconds."""

    setup: Setup
    in_flight: int
    policy: str
    rate: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of requests under one policy: mean latency of those that were answered, in seconds
    (infinite where none was), and the share of those that came that was on time."""

    latency_s: float
    on_time: float


@dataclass(frozen=True, slots=True)
class _AFew:
    """Where a few requests among many are not like them, on the profile `gpu`."""

    process: str
    workers: int
    load: float

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.process}, {self.workers}w, load {self.load:g}"


@dataclass(frozen=True, slots=True)
class Minority(_AFew):
    """A few requests of another batch key among many, under the learned policy and dispatched at
    once."""

    many: Kind
    few: Kind
    many_at_once: Kind
    few_at_once: Kind


@dataclass(frozen=True, slots=True)
class Hurry(_AFew):
    """Shares on time of a few in a hurry and of the others, under the learned policy and dispatched
    at once; `few` is the share of the requests that are in a hurry."""

    few: float
    hurried: float
    others: float
    hurried_at_once: float
    others_at_once: float

    @property
    def all_over_at_once(self) -> float:
        """Of all that were on time under the learned policy, over those dispatched at once."""
        ours = self.few * self.hurried + (1 - self.few) * self.others
        return ours / (self.few * self.hurried_at_once + (1 - self.few) * self.others_at_once)


@dataclass(frozen=True, slots=True)
class Mixtures:
    """All that was found of requests that are not alike."""

    closed: list[Closed]
    minorities: list[Minority]
    hurries: list[Hurry]

    def over(self, policy: str, in_flight: int, setup: Setup) -> float:
        """Sentences per second of the learned policy over those of this one."""
        ours, theirs = (self._found(setup, in_flight, name) for name in (OURS, policy))
        return ours.rate / theirs.rate

    def p99_over(self, policy: str, in_flight: int, setup: Setup) -> float:
        """The 99th percentile of the latency, likewise."""
        ours, theirs = (self._found(setup, in_flight, name) for name in (OURS, policy))
        return ours.p99_s / theirs.p99_s

    def over_fewer(self, in_flight: int, setup: Setup) -> float:
        """Sentences per second of the learned policy over its best with fewer in flight."""
        best = max(self._found(setup, n, OURS).rate for n in IN_FLIGHT if n < in_flight)
        return self._found(setup, in_flight, OURS).rate / best

    def _found(self, setup: Setup, in_flight: int, policy: str) -> Closed:
        wanted = setup, in_flight, policy
        return next(c for c in self.closed if (c.setup, c.in_flight, c.policy) == wanted)


def measure(*, seconds: float, requests: int, seeds: int) -> Mixtures:
    """Closed loops of so many simulated seconds, open ones of so many requests."""
    return Mixtures(
        closed_loops(seconds=seconds, seeds=seeds),
        minorities(requests=requests, seeds=seeds),
        hurries(requests=requests, seeds=seeds),
    )


def closed_loops(*, seconds: float, seeds: int, setups: Sequence[Setup] = SETUPS) -> list[Closed]:
    """All concurrencies under all policies, for so many simulated seconds each."""
    return [
        _closed(setup, in_flight, policy, seconds, seeds)
        for setup, in_flight in product(setups, IN_FLIGHT)
        for policy in setup.policies
    ]


def _closed(setup: Setup, in_flight: int, policy: str, seconds: float, seeds: int) -> Closed:
    costs = setup.costs
    rates, p99s = [], []
    for seed in range(seeds):
        length = partial(costs.draw_length, Random(seed))
        callers = ClosedLoop(in_flight, length, turn_s=setup.turn_s, end_s=seconds)
        play(setup.policies[policy](), callers, costs, workers=1)
        rates.append(len(callers.latencies_s) / seconds)
        p99s.append(float(np.percentile(callers.latencies_s, 99)))
    return Closed(setup, in_flight, policy, fmean(rates), fmean(p99s))


def minorities(*, requests: int, seeds: int, loads: Sequence[float] = LOADS) -> list[Minority]:
    """Bursts and none, one worker and two."""
    look = partial(kinds, requests=requests, seeds=seeds)
    return [Minority(*point, *found) for point, found in _ours_and_at_once(look, loads)]


def _ours_and_at_once(
    look: Callable[..., tuple[T, T]], loads: Sequence[float]
) -> Iterator[tuple[tuple[str, int, float], tuple[T, T, T, T]]]:
    """What is found under the learned policy, and then under immediate dispatch, at each point."""
    for point in product(("poisson", "cv4"), (1, 2), loads):
        ours, at_once = (look(partial(policy, GPU), *point) for policy in (learned, first_come))
        yield point, (*ours, *at_once)


def kinds(
    policy: Callable[[], BatchPolicy],
    process: str,
    workers: int,
    load: float,
    *,
    requests: int,
    seeds: int,
) -> tuple[Kind, Kind]:
    """What becomes of the many and of the few, on the profile `gpu`."""
    rate = load * bounds.capacity(GPU, workers=workers, objective_s=OBJECTIVE_S)
    offered = {False: 0, True: 0}
    latencies_s: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(seeds):
        arrivals = [t / rate for t in PROCESSES[process](requests, Random(seed))]
        random = Random(f"few {seed}")
        few = [random.randrange(FEW) == 0 for _ in range(requests)]
        run = simulate(policy(), arrivals, GPU, workers=workers, objective_s=OBJECTIVE_S, keys=few)
        for kind in offered:
            offered[kind] += few.count(kind)
            latencies_s[kind] += run.latencies_by_key.get(kind, ())
    many, few_ones = (_kind(latencies_s[kind], count) for kind, count in offered.items())
    return many, few_ones


def _kind(latencies_s: Sequence[float], offered: int) -> Kind:
    on_time = sum(latency_s <= OBJECTIVE_S for latency_s in latencies_s)
    return Kind(fmean(latencies_s) if latencies_s else math.inf, on_time / offered)


def hurries(*, requests: int, seeds: int, loads: Sequence[float] = HURRY_LOADS) -> list[Hurry]:
    """Bursts and none, one worker and two."""
    look = partial(_in_time, requests=requests, seeds=seeds)
    return [Hurry(*point, IN_A_HURRY, *found) for point, found in _ours_and_at_once(look, loads)]


def _in_time(
    policy: Callable[[], BatchPolicy],
    process: str,
    workers: int,
    load: float,
    *,
    requests: int,
    seeds: int,
) -> tuple[float, float]:
    """The shares on time of those in a hurry and of the others, on the profile `gpu`."""
    alone_s = GPU.duration_s(1, GPU.typical)
    kinds_s = HURRIED * alone_s, PATIENT * alone_s
    rate = load * bounds.capacity(GPU, workers=workers, objective_s=kinds_s[1])
    offered, on_time = dict.fromkeys(kinds_s, 0), dict.fromkeys(kinds_s, 0)
    for seed in range(seeds):
        arrivals = [t / rate for t in PROCESSES[process](requests, Random(seed))]
        random = Random(f"hurry {seed}")
        objectives_s = [kinds_s[random.random() >= IN_A_HURRY] for _ in arrivals]
        callers = InAHurry(arrivals, objectives_s)
        play(policy(), callers, GPU, workers=workers, seed=seed)
        for kind_s in kinds_s:
            offered[kind_s] += objectives_s.count(kind_s)
            on_time[kind_s] += callers.on_time[kind_s]
    hurried, others = (on_time[kind_s] / offered[kind_s] for kind_s in kinds_s)
    return hurried, others

"""The load up to which 99 % of the requests are on time: for ours, and for the best rival."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from bench.simulate import bounds, static
from bench.simulate.arrivals import PROCESSES
from bench.simulate.profiles import PROFILES, Profile
from bench.simulate.world import Outcome, simulate
from headrace_server.core.adaptive import AdaptivePolicy

ON_TIME = 0.99
TOLERANCE = 0.002
LOWEST, HIGHEST = 0.02, 1.6


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the grid. The objective counts durations of one request alone."""

    profile: str
    process: str
    workers: int
    objective: float
    requests: int
    seeds: int

    @property
    def costs(self) -> Profile:
        """What batches take."""
        return PROFILES[self.profile]

    @property
    def objective_s(self) -> float:
        """The objective in seconds."""
        return self.objective * self.costs.duration_s(1, 0)

    @property
    def rate(self) -> float:
        """Requests per second at load 1."""
        return bounds.capacity(self.costs, workers=self.workers, objective_s=self.objective_s)

    def arrivals(self, load: float, seed: int) -> list[float]:
        """Moments in seconds at this load: for every load the same story at another speed."""
        scale = load * self.rate
        return [t / scale for t in _story(self.process, self.requests, seed)]

    def ours(self, load: float, seed: int, *, timed: bool = False) -> Outcome:
        """One run of the learned policy."""
        costs = self.costs
        policy = AdaptivePolicy(costs.most_rows, costs.sweep(), timer_s=0.0)
        return simulate(
            policy,
            self.arrivals(load, seed),
            costs,
            workers=self.workers,
            objective_s=self.objective_s,
            seed=seed,
            timed=timed,
        )

    def rival(self, settings: static.Settings, load: float, seed: int) -> float:
        """On-time share of one run under fixed settings."""
        costs = self.costs
        durations_s = [costs.duration_s(rows, 0) for rows in range(costs.most_rows + 1)]
        served = static.serve(
            self.arrivals(load, seed),
            durations_s,
            settings,
            workers=self.workers,
            objective_s=self.objective_s,
        )
        return served / self.requests


@cache
def _story(process: str, requests: int, seed: int) -> list[float]:
    return PROCESSES[process](requests, Random(seed))


def highest_load(share: Callable[[float], float], low: float = LOWEST) -> float:
    """The highest load at which `share(load)` is still `ON_TIME`, by bisection from `low` on."""
    if share(low) < ON_TIME:
        return low
    high = low
    while high < HIGHEST and share(high) >= ON_TIME:
        low, high = high, high * 1.25
    while high - low > TOLERANCE * low:
        middle = (low + high) / 2
        if share(middle) >= ON_TIME:
            low = middle
        else:
            high = middle
    return low


def mean_share(runs: Sequence[float]) -> float:
    """The mean over the seeds."""
    return sum(runs) / len(runs)


def best_rival(point: Point) -> tuple[float, static.Settings]:
    """The highest load that any of the fixed settings carries, and which one does.

    Each one is tried a little above the best so far, on a few seeds first: most fail there.
    """
    best_load, best = LOWEST, static.Settings(1, 0.0, static.NO_CAP)
    for settings in static.choices(point.costs, point.rate, point.objective_s):

        def share(load: float, settings: static.Settings = settings) -> float:
            few = [point.rival(settings, load, seed) for seed in range(min(3, point.seeds))]
            if mean_share(few) < ON_TIME - 0.02:
                return 0.0
            rest = [point.rival(settings, load, seed) for seed in range(len(few), point.seeds)]
            return mean_share(few + rest)

        load = highest_load(share, best_load)
        if load > best_load:
            best_load, best = load, settings
    return best_load, best


def our_capacity(point: Point) -> float:
    """The highest load that the learned policy carries."""

    def share(load: float) -> float:
        few = [point.ours(load, seed).on_time_share for seed in range(min(2, point.seeds))]
        if mean_share(few) < ON_TIME - 0.04:
            return 0.0
        rest = [point.ours(load, seed).on_time_share for seed in range(len(few), point.seeds)]
        return mean_share(few + rest)

    return highest_load(share)

"""Points of the grid: a device, a story of arrivals, workers, an objective; and runs at them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from bench.simulate import bounds, static
from bench.simulate.arrivals import PROCESSES
from bench.simulate.policies import first_come, learned
from bench.simulate.profiles import PROFILES, Profile
from bench.simulate.world import Outcome, simulate
from headrace_server.core.policy import BatchPolicy

ROUND, FITTED = "round", "fitted"


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the grid. The objective counts durations of one request alone, in the middle of
    those that are not all alike."""

    profile: str
    process: str
    workers: int
    objective: float
    requests: int

    @property
    def costs(self) -> Profile:
        """What batches take."""
        return PROFILES[self.profile]

    @property
    def objective_s(self) -> float:
        """The objective in seconds."""
        return self.objective * self.costs.duration_s(1, self.costs.typical)

    @property
    def rate(self) -> float:
        """Requests per second at load 1."""
        return bounds.capacity(self.costs, workers=self.workers, objective_s=self.objective_s)

    def fixed_settings(self) -> dict[str, list[static.Settings]]:
        """What rivals are chosen from, by kind."""
        return {
            ROUND: static.round_numbers(self.costs),
            FITTED: static.fitted(self.costs, self.rate, self.objective_s),
        }

    def arrivals(self, load: float, seed: int) -> list[float]:
        """Moments in seconds at this load: for every load the same story at another speed."""
        scale = load * self.rate
        return [t / scale for t in _story(self.process, self.requests, seed)]

    def lengths(self, seed: int) -> list[int] | None:
        """Of the requests of this story, the same at any load; None where all are alike."""
        return _lengths(self.profile, self.requests, seed) if self.costs.lengths else None

    def ours(self, load: float, seed: int) -> Outcome:
        """One run of the learned policy."""
        return self.run(learned(self.costs), load, seed)

    def immediate(self, load: float, seed: int) -> Outcome:
        """One run of whatever waits, at once, up to the largest batch."""
        return self.run(first_come(self.costs), load, seed)

    def run(self, policy: BatchPolicy, load: float, seed: int) -> Outcome:
        """One run of the scheduler that serves, under this policy."""
        return simulate(
            policy,
            self.arrivals(load, seed),
            self.costs,
            workers=self.workers,
            objective_s=self.objective_s,
            lengths=self.lengths(seed),
            seed=seed,
        )

    def rival(self, settings: static.Settings, load: float, seed: int) -> float:
        """On-time share of one run under fixed settings."""
        served = static.serve(
            self.arrivals(load, seed),
            self._from_decision(seed),
            settings,
            workers=self.workers,
            objective_s=self.objective_s,
            lengths=self.lengths(seed),
        )
        return served / self.requests

    @property
    def has_bound(self) -> bool:
        """Whether `bound` and `ceiling` are known: where all requests are alike."""
        return not self.costs.lengths

    def bound(self, load: float, seed: int) -> float:
        """On-time share that nobody can exceed: the optimum with one worker. Without noise.

        Raises ValueError where none is known.
        """
        if not self.has_bound:
            raise ValueError(f"no bound is known of requests of several lengths: {self}")
        most = bounds.most_on_time(
            self.arrivals(load, seed),
            self.costs,
            workers=self.workers,
            objective_s=self.objective_s,
        )
        return most / self.requests

    def ceiling(self, load: float) -> float:
        """On-time requests per second, of a fluid of arrivals at this load."""
        return bounds.ceiling(
            self.costs, load * self.rate, workers=self.workers, objective_s=self.objective_s
        )

    def _from_decision(self, seed: int) -> Callable[[int, int], float]:
        """What batches take from the decision on, by rows and length."""
        costs = self.costs
        if costs.noise:
            random = Random(seed)
            return lambda rows, length: costs.hop_s + costs.sample(rows, length, random)
        known = _durations(self.profile)
        return lambda rows, length: known[length][rows]


@cache
def _story(process: str, requests: int, seed: int) -> list[float]:
    return PROCESSES[process](requests, Random(seed))


@cache
def _lengths(profile: str, requests: int, seed: int) -> list[int]:
    random = Random(f"lengths {seed}")  # not the numbers that the arrivals are made of
    return [PROFILES[profile].draw_length(random) for _ in range(requests)]


@cache
def _durations(profile: str) -> list[list[float]]:
    """By length and rows."""
    costs = PROFILES[profile]
    return [
        [costs.hop_s + costs.duration_s(rows, length) for rows in range(costs.most_rows + 1)]
        for length in range(max(costs.lengths, default=0) + 1)
    ]

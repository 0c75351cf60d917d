"""The study: which points are examined, and what is found out at each of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import fmean

from bench.simulate import static
from bench.simulate.capacity import Duel, duel
from bench.simulate.foresight import TIGHT, Ticks
from bench.simulate.parallel import spread
from bench.simulate.points import FITTED, Point
from bench.simulate.static import Settings

HEADLINE = 4.08
"""25 ms of the profile `gpu`."""

FIRST_TUNING_SEED = 1_000
"""Rivals are tuned on other arrivals than they are judged on."""

REQUESTS, OBJECTIVES, THOUSAND = 2_000, 30, 1_000
"""Each run has so many requests at least, and lasts for so many objectives at load 1: a shorter one
ends before it is seen that more comes than can be carried, since what waits in the end has an
objective's time left. Rounded up to thousands."""

LOADS = (0.3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5)
LIGHT, FULL, HEAVY, HEAVIEST = 0.3, 1.0, 1.3, 1.5
"""Loads that targets speak of; always among those of a study."""


@dataclass(frozen=True, slots=True)
class Study:
    """What to examine: the points of the grid in full, beside them others for capacity alone.

    Then closed loops of `closed_s` simulated seconds, mixtures of `mixed_requests`, what foresight
    is worth where `clocked_requests` come to the problem `clocked`, and decisions while
    `timed_requests` come, `timed_rounds` times.
    """

    grid: Sequence[Point]
    others: Sequence[Point]
    loads: Sequence[float]
    seeds: int
    tuning_seeds: int
    finalists: int
    timed_requests: int
    timed_rounds: int
    closed_s: float
    mixed_requests: int
    clocked: Ticks
    clocked_requests: int

    @property
    def points(self) -> list[Point]:
        """All of them, the grid first."""
        return [*self.grid, *self.others]

    def of(self, names: Collection[str]) -> Study:
        """The same for the points of any of these profiles, arrivals or numbers of workers."""

        def chosen(points: Sequence[Point]) -> Sequence[Point]:
            return [
                point
                for point in points
                if {point.profile, point.process, f"{point.workers}w"} & {*names}
            ]

        return replace(self, grid=chosen(self.grid), others=chosen(self.others))


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found at one point.

    `shares[policy][load][seed]`: on-time shares of `ours`, `static`, `immediate` and `bound`;
    empty beside the grid. `latencies_s`: mean latency at load 0.3 by policy. `rate`: requests per
    second at load 1. `ceiling`: on-time requests per second that a fluid would allow at 1.3; 0
    beside the grid.
    """

    point: Point
    rate: float
    duel: Duel
    shares: dict[str, list[list[float]]]
    latencies_s: dict[str, float]
    ceiling: float


def full() -> Study:
    """Everything."""
    grid = [
        _lasting(Point("gpu", process, workers, objective, REQUESTS))
        for workers, process, objective in product(
            (1, 2, 4, 8), ("poisson", "cv2", "cv4"), (2.5, HEADLINE, 10.0)
        )
    ]
    others = [
        _lasting(Point(profile, process, workers, objective, REQUESTS))
        for profile, process, objective in (
            ("gpu", "diurnal", HEADLINE),
            ("gpu", "replayed", HEADLINE),
            ("gpu, noise 0.1", "poisson", HEADLINE),
            ("gpu-steps", "poisson", HEADLINE),
            ("minilm-16", "poisson", HEADLINE),
            ("resnet18-cpu", "poisson", HEADLINE),
            ("mlp", "poisson", HEADLINE),
            ("mlp", "poisson", 100.0),
            ("text", "poisson", 20.0),
            ("text", "cv2", 20.0),
        )
        for workers in (1, 4)
    ]
    return Study(
        grid,
        others,
        LOADS,
        seeds=10,
        tuning_seeds=3,
        finalists=6,
        timed_requests=15_000,
        timed_rounds=3,
        closed_s=120.0,
        mixed_requests=20_000,
        clocked=TIGHT,
        clocked_requests=20_000,
    )


def _lasting(point: Point) -> Point:
    """The same, long enough."""
    least = math.ceil(OBJECTIVES * point.rate * point.objective_s / THOUSAND) * THOUSAND
    return replace(point, requests=max(point.requests, least))


def quick() -> Study:
    """A taste of everything, in half a minute: too little to judge anything by."""
    requests = 600
    grid = [
        Point("gpu", process, workers, HEADLINE, requests)
        for process, workers in (("poisson", 1), ("poisson", 4), ("cv4", 1))
    ]
    others = [Point("gpu-steps", "poisson", 1, HEADLINE, requests)]
    loads = (LIGHT, FULL, HEAVY, HEAVIEST)
    return Study(
        grid,
        others,
        loads,
        seeds=3,
        tuning_seeds=1,
        finalists=2,
        timed_requests=6_000,
        timed_rounds=1,
        closed_s=5.0,
        mixed_requests=requests,
        clocked=Ticks(6, 3, 20),
        clocked_requests=requests,
    )


def examine(study: Study, *, processes: int) -> list[Finding]:
    """Examine all points, the grid first, on so many processes of low priority.

    Equal from run to run: every point has its own seeds, and findings come in the order of points.
    """
    points = study.points
    return _counted(spread(partial(_examine, study), points, processes), len(points))


def merged(study: Study, findings: Iterable[Finding], anew: Iterable[Finding]) -> list[Finding]:
    """One finding for each point of the study, in its order: what was found anew counts.

    Raises:
        ValueError: a point is in neither.
    """
    by_point = {finding.point: finding for finding in (*findings, *anew)}
    missing = [point for point in study.points if point not in by_point]
    if missing:
        raise ValueError(f"examine these again, nothing was found of them before: {missing}")
    return [by_point[point] for point in study.points]


def _examine(study: Study, point: Point) -> Finding:
    seeds = range(study.seeds)
    tuning_seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.tuning_seeds)
    found = duel(point, seeds=seeds, tuning_seeds=tuning_seeds, finalists=study.finalists)
    shares: dict[str, list[list[float]]] = {}
    latencies_s: dict[str, float] = {}
    ceiling = 0.0
    if point in study.grid:
        settings = found.rivals[FITTED].settings or _most_at_full_load(point, tuning_seeds)
        at_once = Settings(point.costs.most_rows, 0.0, static.NO_CAP)
        policies: dict[str, Callable[[float, int], float]] = {
            "ours": lambda load, seed: point.ours(load, seed).on_time_share,
            "static": partial(point.rival, settings),
            "immediate": partial(point.rival, at_once),
            "bound": point.bound,
        }
        shares = {
            name: [[round(run(load, seed), 5) for seed in seeds] for load in study.loads]
            for name, run in policies.items()
        }
        latencies_s = {
            name: fmean(fmean(run(LIGHT, seed).latencies_s) for seed in seeds)
            for name, run in (("ours", point.ours), ("immediate", point.immediate))
        }
        ceiling = point.ceiling(HEAVY)
    return Finding(point, point.rate, found, shares, latencies_s, ceiling)


def _most_at_full_load(point: Point, seeds: Sequence[int]) -> Settings:
    """What to show of fixed settings where none keeps 99 % on time at any load."""
    return max(
        point.fixed_settings()[FITTED],
        key=lambda settings: fmean(point.rival(settings, FULL, seed) for seed in seeds),
    )


def _counted(findings: Iterable[Finding], count: int) -> list[Finding]:
    kept = []
    for number, finding in enumerate(findings, 1):
        print(f"{number} of {count}: {finding.point}", file=sys.stderr, flush=True)
        kept.append(finding)
    return kept

"""The load up to which 99 % of the requests are on time: for ours, and for the best rival."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.simulate import static
from bench.simulate.points import Point

ON_TIME = 0.99
LOWEST = 0.05
STEP = 1.02
RUNGS = 180
"""Loads are tried on a ladder from 0.05 to 1.77, each 2 % above the last; between two of them the
share is interpolated."""

HOPELESS = 0.04
"""So far below `ON_TIME` on the first two seeds, the others are not tried."""

BOUND_SEEDS = 5
"""Seeds that the bound is taken over: it shows how much room there was, nothing is judged by it."""

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 %, two-sided, by degrees of freedom from 1 on: for 2 to 10 seeds."""

Seeds = Sequence[int]


@dataclass(frozen=True, slots=True)
class Rival:
    """The best of some fixed settings at one point; `capacity` is None where none of them carries
    anything. `ratio` is our capacity over theirs, between `low` and `high` with 95 % confidence."""

    capacity: float | None
    settings: static.Settings | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Duel:
    """Capacities at one point; None where `ON_TIME` is reached at no load, or no bound is known."""

    ours: float | None
    bound: float | None
    rivals: dict[str, Rival]


def duel(point: Point, *, seeds: Seeds, tuning_seeds: Seeds, finalists: int) -> Duel:
    """Ours against the best fixed settings of each kind.

    Finalists are chosen on the tuning seeds, and the best of them on `seeds` is the rival: to
    choose among all on the seeds that count would credit it with their luck. The interval is a
    jackknife over the seeds of the ratio's logarithm (Efron and Tibshirani, 1993, chapter 11); in
    each subset the best finalist is chosen anew.
    """
    known: dict[static.Settings, Shares] = {}
    fields = {
        kind: {
            settings: known.setdefault(settings, shares_of(point, settings))
            for settings in best_settings(point, choices, tuning_seeds, finalists)
        }
        for kind, choices in point.fixed_settings().items()
    }
    loads = [load for field in fields.values() if (load := _best(field, seeds)[0])]
    ours = Shares(
        lambda load, seed: point.ours(load, seed).on_time_share, near=max(loads, default=None)
    )
    our_load = ours.capacity(seeds)
    bound = None
    if point.has_bound:
        bound = Shares(point.bound, near=our_load).capacity(seeds[:BOUND_SEEDS])
    rivals = {kind: _compare(ours, field, seeds) for kind, field in fields.items()}
    return Duel(our_load, bound, rivals)


def best_settings(
    point: Point, choices: Iterable[static.Settings], seeds: Seeds, count: int
) -> list[static.Settings]:
    """The fixed settings that carry the highest loads on these seeds, the best first.

    Each is tried first where the worst of the best so far ends: most fail there.
    """
    best: list[tuple[float, static.Settings]] = []
    for settings in choices:
        shares = shares_of(point, settings)
        if len(best) == count and not shares.hold(best[-1][0], seeds):
            continue
        load = shares.capacity(seeds)
        if load is not None:
            best = sorted([*best, (load, settings)], key=lambda entry: -entry[0])[:count]
    return [settings for _, settings in best]


def _best(field: Field, seeds: Seeds) -> tuple[float | None, static.Settings | None]:
    """The highest capacity on these seeds, and whose it is."""
    loads = {settings: shares.capacity(seeds) for settings, shares in field.items()}
    settings = max(loads, key=lambda settings: loads[settings] or 0.0, default=None)
    load = loads[settings] if settings else None
    return load, settings if load else None


def _compare(ours: Shares, field: Field, seeds: Seeds) -> Rival:
    our_load = ours.capacity(seeds)
    their_load, settings = _best(field, seeds)
    if our_load is None or their_load is None:
        return Rival(their_load, settings)
    logs = []
    for left_out in seeds:
        subset = [seed for seed in seeds if seed != left_out]
        mine, theirs = ours.capacity(subset), _best(field, subset)[0]
        # A subset in which one of them fails at every load counts as the lowest load.
        logs.append(math.log((mine or LOWEST) / (theirs or LOWEST)))
    mean = fmean(logs)
    count = len(seeds)
    error = math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in logs))
    middle, reach = math.log(our_load / their_load), STUDENT[count - 2] * error
    low, ratio, high = (math.exp(middle + side * reach) for side in (-1, 0, 1))
    return Rival(their_load, settings, ratio, low, high)


class Shares:
    """On-time shares of one policy at one point, by rung of the ladder and seed; each is run once.

    Args:
        run: the share at a load and a seed.
        near: a load to look for the capacity from.
    """

    def __init__(self, run: Callable[[float, int], float], near: float | None = None) -> None:
        self._run = run
        self._known: dict[tuple[int, int], float] = {}
        self._capacities: dict[tuple[int, ...], float | None] = {}
        self._near = _rung(near) if near else None

    def capacity(self, seeds: Seeds) -> float | None:
        """The load at which the mean share over these seeds falls below `ON_TIME`; the end of the
        ladder if it never does, None if it is below at its beginning. Where luck has it fall below
        and rise again, the first answer stands, wherever it was looked for from."""
        chosen = tuple(seeds)
        if chosen not in self._capacities:
            self._capacities[chosen] = self._crossing(seeds)
        return self._capacities[chosen]

    def _crossing(self, seeds: Seeds) -> float | None:
        low, high = (0, RUNGS) if self._near is None else self._around(self._near, seeds)
        if low == 0 and not self._holds(0, seeds):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._holds(middle, seeds):
                low = middle
            else:
                high = middle
        self._near = low
        above, below = self._mean(low, seeds), self._mean(high, seeds)
        inside = (above - ON_TIME) / (above - below) if below < ON_TIME else 1.0
        return _load(low + inside)

    def hold(self, load: float, seeds: Seeds) -> bool:
        """Whether `ON_TIME` is reached on the last rung that is not above this load."""
        return self._holds(_rung(load), seeds)

    def _holds(self, rung: int, seeds: Seeds) -> bool:
        hopeless = self._mean(rung, seeds[:2]) < ON_TIME - HOPELESS
        return not hopeless and self._mean(rung, seeds) >= ON_TIME

    def _around(self, near: int, seeds: Seeds) -> tuple[int, int]:
        """Two rungs with the crossing between them, found in growing steps from `near` on."""
        low, high, step = near, min(near + 1, RUNGS), 1
        while low > 0 and not self._holds(low, seeds):
            low, high, step = max(0, low - step), low, 2 * step
        while high < RUNGS and self._holds(high, seeds):
            low, high, step = high, min(RUNGS, high + step), 2 * step
        return low, high

    def _mean(self, rung: int, seeds: Seeds) -> float:
        return fmean(self._at(rung, seed) for seed in seeds)

    def _at(self, rung: int, seed: int) -> float:
        share = self._known.get((rung, seed))
        if share is None:
            share = self._known[rung, seed] = self._run(_load(rung), seed)
        return share


Field = Mapping[static.Settings, Shares]
"""Finalists, and what is known of each."""


def shares_of(point: Point, settings: static.Settings) -> Shares:
    """What these fixed settings do at the point."""
    return Shares(lambda load, seed: point.rival(settings, load, seed))


def _rung(load: float) -> int:
    """The last one that is not above this load."""
    return math.floor(math.log(load / LOWEST) / math.log(STEP) + 1e-9)


def _load(rung: float) -> float:
    return float(LOWEST * STEP**rung)

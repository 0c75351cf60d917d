"""What knowing the future is worth: the best policy of one worker that does not know it.

The exact optimum of `bounds` knows when requests will come, so no scheduler reaches it. What the
best one without foresight could reach is known for a small problem: on a clock of ticks, with at
most one arrival in each, what waits is a set of ages, and value iteration finds the policy with the
most answers on time per tick (Puterman, 1994, chapter 11: semi-Markov decisions, average reward).
Where arrivals come in bursts it is told when one begins and ends, which no scheduler is: what it
reaches is more than any could.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random
from statistics import fmean
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bench.simulate import bounds
from bench.simulate.parallel import spread
from bench.simulate.policies import learned
from bench.simulate.profiles import Profile
from bench.simulate.world import simulate

Values: TypeAlias = npt.NDArray[np.float64]
"""By phase of the arrivals, if there are several, and state of the queue."""
States: TypeAlias = npt.NDArray[np.int64]

PRECISION = 1e-5
"""Of the rate of answers, as a share of it: a hundredth of the last digit that is told."""


@dataclass(frozen=True, slots=True)
class Bursts:
    """An interrupted Bernoulli process, whose gaps are independent (Kuczura, 1973, for Poisson's):
    requests come `peak` times as often as on the mean, until after `length` of them on the mean
    there are none for a while. With a peak of 1 there is no such while.

    Gaps of short ticks have a squared coefficient of variation of
    `1 + 2 * length * (1 - 1 / peak)^2`.
    """

    name: str
    peak: float
    length: float

    def phases(self, rate: float) -> tuple[Values, Values]:
        """The probability of an arrival in a tick of each phase, and that of the next tick's phase
        by this one's, for a mean of `rate` arrivals per tick.

        Raises ValueError where that would be more than one per tick in a burst.
        """
        often = self.peak * rate
        if often > 1.0:
            raise ValueError(f"expected at most one arrival per tick, got {often:.3g} in a burst")
        if self.peak == 1.0:
            return np.array([rate]), np.ones((1, 1))
        ends = often / self.length
        begins = ends / (self.peak - 1.0)
        return np.array([often, 0.0]), np.array([[1.0 - ends, ends], [begins, 1.0 - begins]])


ARRIVALS = (Bursts("poisson", 1.0, math.inf), Bursts("cv2", 4.0, 8 / 3), Bursts("cv4", 4.0, 40 / 3))
"""Named after the processes of `arrivals` whose gaps vary about as much."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """One worker whose batches of b requests take `base + b * row` ticks, and requests that have
    to be answered within `patience` ticks of their arrival."""

    base: int
    row: int
    patience: int
    tick_s: float = 1e-3

    def duration(self, rows: int) -> int:
        """Ticks that a batch takes."""
        return self.base + rows * self.row

    @property
    def most_rows(self) -> int:
        """The largest batch that is ever in time."""
        return (self.patience - self.base) // self.row

    @property
    def rate(self) -> float:
        """Arrivals per tick at load 1, see `bounds.capacity`."""
        rate = bounds.capacity(self.profile, workers=1, objective_s=self.objective_s)
        return rate * self.tick_s

    @property
    def profile(self) -> Profile:
        """The same for the simulator."""
        return Profile("ticks", self.most_rows, lambda rows, _: self.duration(rows) * self.tick_s)

    @property
    def objective_s(self) -> float:
        """The patience, and half a tick so that no answer in time is late by rounding."""
        return (self.patience + 0.5) * self.tick_s

    def arrivals(self, bursts: Bursts, load: float, requests: int, seed: int) -> list[float]:
        """Moments in seconds, just before the ticks: each tick has an arrival or has none."""
        often, follows = (values.tolist() for values in bursts.phases(load * self.rate))
        random = Random(seed)
        tick, phase, moments = 0, 0, list[float]()
        while len(moments) < requests:
            tick += 1
            if random.random() < often[phase]:
                moments.append((tick - 0.01) * self.tick_s)
            if random.random() >= follows[phase][phase]:
                phase = 1 - phase
        return moments


TIGHT = Ticks(10, 2, 29, 0.525e-3)
"""The profile `gpu` at 2.5 times what one request takes: there a batch takes 9.7 + 2.0 b of these
ticks. The hop counts against the patience, which leaves time for 2.42 requests alone, here too."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Shares of the requests that are answered on time: by who knows the future, by the best policy
    that does not, and by the learned one; `process` names the arrivals."""

    process: str
    load: float
    foreseeing: float
    best: float
    ours: float


def measure(
    problem: Ticks, loads: Sequence[float], *, requests: int, seeds: int, processes: int
) -> Iterator[Standing]:
    """How the three stand at these loads, by `ARRIVALS`, on the mean over the seeds."""
    look = partial(_standing, problem, requests, seeds)
    return spread(look, list(product(ARRIVALS, loads)), processes)


def _standing(
    problem: Ticks, requests: int, seeds: int, bursts_and_load: tuple[Bursts, float]
) -> Standing:
    bursts, load = bursts_and_load
    objective_s, profile = problem.objective_s, problem.profile
    foreseeing, ours = [], []
    for seed in range(seeds):
        arrivals = problem.arrivals(bursts, load, requests, seed)
        most = bounds.most_on_time(arrivals, profile, workers=1, objective_s=objective_s)
        foreseeing.append(most / requests)
        outcome = simulate(learned(profile), arrivals, profile, workers=1, objective_s=objective_s)
        ours.append(outcome.on_time_share)
    best = best_share(problem, bursts, load * problem.rate)
    return Standing(bursts.name, load, fmean(foreseeing), best, fmean(ours))


def best_share(problem: Ticks, bursts: Bursts, rate: float) -> float:
    """The share of the requests that the best policy without foresight answers on time, where
    `rate` of them come per tick on the mean, which the policy knows, as it does the phase.

    Bit i of a state is a request that came i ticks ago; older ones than those that could still ride
    alone are forgotten. With the worker free, b requests ride: the oldest that their batch answers
    in time, which is no loss, since whoever is younger can wait longer. Or nobody does for a tick.
    """
    bits = problem.patience - problem.duration(1) + 1
    states: States = np.arange(1 << bits, dtype=np.int64)
    rides = {
        ticks: (rows, *_after(states, rows, problem.patience - ticks))
        for rows in range(problem.most_rows + 1)
        for ticks in [problem.duration(rows) if rows else 1]
        if rows <= problem.patience - ticks + 1  # one came in each tick
    }
    often, follows = bursts.phases(rate)
    comes = often[:, np.newaxis]
    values: Values = np.zeros((len(often), len(states)))
    while True:
        later, gain = values, np.full(values.shape, -math.inf)
        for ticks in range(1, max(rides) + 1):
            # Ages grow by one, so that a state goes to an even one, or with an arrival to the odd
            # one behind it, whatever its highest bit is.
            later = follows @ later
            later = np.tile((1.0 - comes) * later[:, ::2] + comes * later[:, 1::2], 2)
            if ticks in rides:
                rows, left, possible = rides[ticks]
                gained = (rows + later[:, left] - values) / ticks
                gain = np.where(possible, np.maximum(gain, gained), gain)
        least, most = float(gain.min()), float(gain.max())
        if most - least <= PRECISION * most:
            return (least + most) / 2 / rate
        values = values + gain
        values -= values[0, 0]


def _after(states: States, rows: int, oldest: int) -> tuple[States, npt.NDArray[np.bool_]]:
    """What is left of these states when the oldest `rows` requests of those up to an age of
    `oldest` ride, older ones being lost; whether there are so many."""
    left = states & ((1 << (oldest + 1)) - 1)
    possible = np.ones(len(states), dtype=np.bool_)
    for _ in range(rows):
        possible &= left > 0
        highest = np.int64(1) << np.maximum(np.frexp(left.astype(np.float64))[1] - 1, 0)
        left = left & ~highest
    return left, possible

"""The cost model: how long a batch of so many rows, padded to such a length, will take.

Pure arithmetic on a handful of numbers, so that the very same model plans in the server, in tests
and in a simulator.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from headrace_server.core.factors import Factors, rising, steps
from headrace_server.core.request import Batch, Request, cost_key

Sample = tuple[int, int, float]
"""Rows, padded length (0 when nothing is ragged), and the measured duration in seconds."""

TERMS = 4

MIN_BASE_S = 1e-6
"""No batch is free, not even one of empty rows: it keeps every ratio of durations finite."""

UNKNOWN_ROW_S = 0.001
"""What a row counts for while nothing is known of durations: all that matters is the proportion."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """`base + rows * (row + length * (element + length * pair))`, in seconds, times `steps[rows]`.

    A fixed cost, one per row, one per padded element, and attention's one per pair of elements.
    `steps` are factors by rows, for devices whose durations grow by the step; the last one counts
    for all beyond it, and empty means none. No coefficient is negative and the steps never undo
    what a row adds, so the curve never falls as a batch grows.
    """

    base: float
    row: float
    element: float
    pair: float
    steps: tuple[float, ...] = ()

    def at(self, rows: int, length: int) -> float:
        """Seconds for one batch."""
        smooth_s = self.base + rows * (self.row + length * (self.element + length * self.pair))
        steps = self.steps
        if not steps:
            return smooth_s
        return smooth_s * (steps[rows] if rows < len(steps) else steps[-1])

    def upto(self, most_rows: int, length: int) -> list[float]:
        """Seconds for batches of 1 to `most_rows` rows."""
        per_row = self.row + length * (self.element + length * self.pair)
        base, steps = self.base, self.steps
        if not steps:
            return [base + rows * per_row for rows in range(1, most_rows + 1)]
        by_rows = steps[1 : most_rows + 1]
        by_rows += steps[-1:] * (most_rows - len(by_rows))
        return [(base + rows * per_row) * step for rows, step in enumerate(by_rows, 1)]

    def step(self, rows: int) -> float:
        """The factor of a batch of so many rows."""
        steps = self.steps
        return steps[min(rows, len(steps) - 1)] if steps else 1.0

    def scaled(self, factor: float) -> Curve:
        """Everything takes `factor` times as long."""
        return Curve(
            self.base * factor,
            self.row * factor,
            self.element * factor,
            self.pair * factor,
            self.steps,
        )


class CostModel:
    """Learns a `Curve` from measured batches, first from a sweep and then from what is served.

    Least squares on *relative* errors, so that a batch of one counts as much as a full one, under
    the constraint that no coefficient is negative (coordinate descent; Lawson and Hanson, 1974,
    chapter 23, pose the problem). Single outliers are clipped (Huber, 1964). Old measurements
    fade, the sweep stays as a prior for shapes that are never served; when durations shift as a
    whole, the prior shifts with them.

    Factors on top of the curve take what it cannot say: steps by rows (only where all batches are
    of one length), what a batch key adds to its length, and how much slower batches are while
    other workers run, who share the cores or the device.
    """

    FADING = 0.98
    """Weight that a measurement keeps with each later one: about the last 50 count."""
    CLIP = 0.5
    """A measurement that differs by more than this share pulls no harder than one at it."""
    PRIOR_WEIGHT = 10.0
    """Measurements that the whole sweep weighs as much as."""
    LEARN_EVERY_S = 0.01
    FIT_EVERY_S = 0.1
    """Batch time that passes between two measurements taken in, and between two fits: learning
    costs some 15 and 100 microseconds, and stays below half a per cent of the work."""
    QUANTILE = 0.95
    QUANTILE_STEP = 0.02
    DRIFT_WINDOW = 9
    DRIFT = math.log(1.5)
    """Median log ratio of measured to predicted durations, over the window, that counts as
    drift. The median, since a busy machine makes single batches late by any factor."""

    MOST_KEYS = 64
    MOST_STEPS = 512
    """Bounds of what is remembered. Beyond so many rows a device's steps are small beside the
    batch."""

    def __init__(self, sweep: Iterable[Sample] = ()) -> None:
        self._by_rows = Factors(doubt=3.0, clip=self.CLIP, most_cases=self.MOST_STEPS)
        # New cases must be absorbed within a few measurements, before they count as drift.
        self._by_key = Factors(doubt=1.0, clip=2.0, most_cases=self.MOST_KEYS)
        self._by_running = Factors(doubt=1.0, clip=2.0, most_cases=self.MOST_KEYS)
        self._slowdowns = [1.0, 1.0]
        self._first_key: Hashable = None
        self._lengths: set[int] = set()
        self._most_rows = 1
        self._curves: dict[tuple[Hashable, int], Curve] = {}
        self._prior = [s for s in sweep if s[2] > 0]
        self._scale = (
            float(max((rows for rows, _, _ in self._prior), default=1)),
            float(max((length for _, length, _ in self._prior), default=0) or 1),
        )
        self._gram = [[0.0] * TERMS for _ in range(TERMS)]
        self._target = [0.0] * TERMS
        self._weights = [0.0] * TERMS
        self._unlearned_s = 0.0
        self._unfitted_s = 0.0
        self._errors: deque[float] = deque(maxlen=self.DRIFT_WINDOW)
        self._log_margin = 0.0
        self.margin = 1.0
        """The factor between the expected duration and its 95th percentile, at least 1. To be read
        only."""
        self._curve: Curve | None = None
        if self._prior:
            self._sum_prior()
            self._fit()
            self._learn_steps()

    @property
    def curve(self) -> Curve | None:
        """What is believed now of a worker that runs alone; None before the first measurement."""
        return self._curve

    def curve_for(self, key: Hashable, running: int) -> Curve | None:
        """What is believed now of batches of this key while so many workers run, this one
        included. The same object until something was learned."""
        if self._curve is None:
            return None
        case = key, running
        curve = self._curves.get(case)
        if curve is None:
            factor = self._factor(key, running)
            curve = self._curve if factor == 1.0 else self._curve.scaled(factor)
            if len(self._curves) >= 4 * self.MOST_KEYS:
                self._curves.clear()
            self._curves[case] = curve
        return curve

    def slowdown(self, running: int) -> float:
        """How many times as long a batch takes while so many workers run, next to one alone."""
        return self._slowdowns[min(running, len(self._slowdowns) - 1)]

    @property
    def lengths(self) -> Sequence[int]:
        """Lengths that were timed before anything was served, ascending; or the first served."""
        return sorted({length for _, length, _ in self._prior})

    def duration_s(self, batch: Batch) -> float | None:
        """How long this batch will probably run; None before the first measurement."""
        curve = self.curve_for(cost_key(batch.requests[0]), batch.running)
        return None if curve is None else curve.at(batch.rows, batch.length)

    def work_s(self, request: Request) -> float:
        """Seconds that this request would take alone; in proportion to its rows, and above 0 in any
        case, while nothing is known."""
        if self._curve is None:
            return request.rows * UNKNOWN_ROW_S
        return self._curve.at(request.rows, request.length)

    def observe_batch(self, batch: Batch, duration_s: float) -> None:
        """Learn from this batch, which was served."""
        key = cost_key(batch.requests[0])
        self.observe(batch.rows, batch.length, duration_s, key, batch.running)

    def observe(
        self, rows: int, length: int, duration_s: float, key: Hashable = None, running: int = 1
    ) -> None:
        """Learn from one batch that was served, while `running` workers ran, this one included."""
        if duration_s <= 0:
            return
        if self._curve is None:
            self._prior = [(rows, length, duration_s)]
            self._scale = (float(rows), float(length or 1))
            self._first_key = key
            self._sum_prior()
            self._fit()
            return
        # Whether this one counts depends on those before it only: if its own duration could tip
        # the balance, the slow ones would be chosen.
        due = self._unlearned_s >= self.LEARN_EVERY_S
        if due:
            self._unfitted_s += self._unlearned_s
            self._unlearned_s = 0.0
        self._unlearned_s += duration_s
        if not due:
            return
        expected_s = self._curve.at(rows, length) * self._factor(key, running)
        error = math.log(duration_s / expected_s)
        self._log_margin += self.QUANTILE_STEP * (
            self.QUANTILE if error > self._log_margin + 0.005 else self.QUANTILE - 1
        )
        self.margin = math.exp(max(0.0, self._log_margin))
        self._errors.append(error)
        if len(self._errors) == self.DRIFT_WINDOW:
            median = sorted(self._errors)[self.DRIFT_WINDOW // 2]
            if abs(median) > self.DRIFT:
                self._shift(math.exp(median))
        self._learn_factors(rows, length, key, running, error)
        self._learn_curve(rows, length, duration_s / self._factor(key, running), error)
        if self._unfitted_s >= self.FIT_EVERY_S:
            self._unfitted_s = 0.0
            self._fit()

    def _factor(self, key: Hashable, running: int) -> float:
        return self.slowdown(running) * (1.0 if key == self._first_key else self._by_key.of(key))

    def _learn_factors(
        self, rows: int, length: int, key: Hashable, running: int, error: float
    ) -> None:
        if self._first_key is None:
            self._first_key = key
        # What a factor should have been is what was seen without it; of the others it shows none.
        if running > 1:
            seen = error + math.log(self.slowdown(running))
            self._by_running.learn(running, seen)
            most = max(running, len(self._slowdowns) - 1)
            self._slowdowns = rising(self._by_running, most)
        if key != self._first_key:
            self._by_key.learn(key, error + self._by_key.log(key))
        if len(self._lengths) < 2:
            self._lengths.add(length)
            if rows <= self.MOST_STEPS:
                self._most_rows = max(self._most_rows, rows)
                assert self._curve is not None
                self._by_rows.learn(rows, error + math.log(self._curve.step(rows)))

    def _learn_curve(self, rows: int, length: int, duration_s: float, error: float) -> None:
        weight = min(1.0, self.CLIP / abs(error)) if error else 1.0
        for row in self._gram:
            for j in range(TERMS):
                row[j] *= self.FADING
        self._target = [value * self.FADING for value in self._target]
        # Relative to the larger of the two: a batch that seems to have taken no time, since its
        # answer was read together with the one before it, would outweigh hundreds of others.
        relative_to_s = duration_s * max(1.0, math.exp(-error))
        terms = self._terms(rows, length)
        _accumulate(self._gram, self._target, terms, duration_s, relative_to_s, weight)

    def _shift(self, factor: float) -> None:
        """Everything takes `factor` times as long as it used to: start again from there."""
        self._prior = [(rows, length, s * factor) for rows, length, s in self._prior]
        self._gram = [[0.0] * TERMS for _ in range(TERMS)]
        self._target = [0.0] * TERMS
        self._errors.clear()
        self._unfitted_s = self.FIT_EVERY_S
        self._sum_prior()

    def _sum_prior(self) -> None:
        self._prior_gram = [[0.0] * TERMS for _ in range(TERMS)]
        self._prior_target = [0.0] * TERMS
        share = self.PRIOR_WEIGHT / len(self._prior)
        for rows, length, duration_s in self._prior:
            terms = self._terms(rows, length)
            _accumulate(self._prior_gram, self._prior_target, terms, duration_s, duration_s, share)

    def _terms(self, rows: int, length: int) -> tuple[float, float, float, float]:
        r, x = rows / self._scale[0], length / self._scale[1]
        return 1.0, r, r * x, r * x * x

    def _fit(self) -> None:
        gram = [
            [own + prior for own, prior in zip(*rows, strict=True)]
            for rows in zip(self._gram, self._prior_gram, strict=True)
        ]
        target = [o + p for o, p in zip(self._target, self._prior_target, strict=True)]
        self._weights = _non_negative(gram, target, self._weights)
        base, row, element, pair = self._weights
        by_rows, by_length = self._scale
        self._curve = Curve(
            max(base, MIN_BASE_S),
            row / by_rows,
            element / (by_rows * by_length),
            pair / (by_rows * by_length * by_length),
        )
        if len(self._lengths) < 2:
            written = steps(self._by_rows, self._most_rows, self._curve.base, self._curve.row)
            self._curve = replace(self._curve, steps=written)
        self._curves.clear()

    def _learn_steps(self) -> None:
        """Take in how the sweep differs from the curve fitted to it, if it has but one length."""
        self._lengths = {length for _, length, _ in self._prior}
        if len(self._lengths) == 1 and self._curve is not None:
            curve = self._curve
            for rows, length, duration_s in self._prior:
                if rows <= self.MOST_STEPS:
                    self._most_rows = max(self._most_rows, rows)
                    self._by_rows.learn(
                        rows, math.log(duration_s / curve.at(rows, length)), self.PRIOR_WEIGHT
                    )
            self._fit()


def _accumulate(
    gram: list[list[float]],
    target: list[float],
    terms: Sequence[float],
    duration_s: float,
    relative_to_s: float,
    weight: float,
) -> None:
    """Add one equation `terms . x = duration`, both sides divided by `relative_to_s`."""
    scaled = [term / relative_to_s for term in terms]
    share = duration_s / relative_to_s
    for i in range(TERMS):
        target[i] += weight * scaled[i] * share
        for j in range(TERMS):
            gram[i][j] += weight * scaled[i] * scaled[j]


def _non_negative(
    gram: list[list[float]], target: list[float], start: list[float], sweeps: int = 60
) -> list[float]:
    """Minimise `x . gram x / 2 - target . x` over x >= 0, one coordinate at a time.

    Each step is exact for its coordinate, so the value never rises; starting from the last
    solution, a few sweeps follow a single new measurement.
    """
    x = start.copy()
    for _ in range(sweeps):
        moved = 0.0
        for i in range(TERMS):
            if gram[i][i] <= 0.0:
                continue
            rest = sum(gram[i][j] * x[j] for j in range(TERMS) if j != i)
            best = max(0.0, (target[i] - rest) / gram[i][i])
            moved = max(moved, abs(best - x[i]))
            x[i] = best
        if moved <= 1e-9 * max(x):
            break
    return x

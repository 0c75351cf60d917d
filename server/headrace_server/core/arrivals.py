"""How work arrives: the load that the workers of a model are asked to carry, and how sure it is."""

from __future__ import annotations

import math
from collections import deque
from operator import mul
from typing import NamedTuple

WINDOW = 1024
"""Arrivals that the estimate looks back over. A few dozen would follow every burst: at a
coefficient of variation of 4 their rate is off by half; a thousand are within a tenth."""

STRIDE = 16
"""Arrivals between two entries that are remembered."""

LATELY = 3
"""Entries that make up what came lately, 32 to 48 arrivals: off by a sixth, but soon after a lull
begins or ends."""

SURE = 1.645
"""Standard errors within which an estimate is on one side, 19 times out of 20."""

LEAST_STRIDES = 4
"""Of fewer nothing is sure: they may be one burst."""


class _Mark(NamedTuple):
    """The moment of one of the arrivals, and the work of all before it."""

    moment_s: float
    work_s: float


class ArrivingWork:
    """Seconds of work that arrive per second, over about the last `WINDOW` arrivals.

    A request's work is how long it would take alone. Memory and time per arrival are constant.
    """

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque(maxlen=WINDOW // STRIDE)
        # Of the strides between them, the times that they took and their work.
        self._times_s: deque[float] = deque(maxlen=WINDOW // STRIDE - 1)
        self._works_s: deque[float] = deque(maxlen=WINDOW // STRIDE - 1)
        self._count = 0
        self._work_s = 0.0
        self.uncertainty = 1.0
        """How far off the estimate may be, as a share of it, 19 times out of 20 on one side; 1
        where nothing is sure."""

    def add(self, work_s: float, now: float) -> None:
        """A request of that much work arrived."""
        if self._count % STRIDE == 0:
            if self._marks:
                last = self._marks[-1]
                self._times_s.append(now - last.moment_s)
                self._works_s.append(self._work_s - last.work_s)
            self._marks.append(_Mark(now, self._work_s))
            self.uncertainty = self._standard_errors()
        self._count += 1
        self._work_s += work_s

    def per_second(self, now: float) -> float:
        """The estimate; 0 until more than `2 * STRIDE` arrivals are known."""
        return self._per_second(now, 0)

    def lately_per_second(self, now: float) -> float:
        """The same of the last few dozen arrivals only."""
        return self._per_second(now, -LATELY)

    def _per_second(self, now: float, since: int) -> float:
        if len(self._marks) < LATELY:
            return 0.0
        mark = self._marks[since]
        elapsed_s = now - mark.moment_s
        return (self._work_s - mark.work_s) / elapsed_s if elapsed_s > 0 else 0.0

    def _standard_errors(self) -> float:
        """`SURE` of them, of a ratio of sums (Cochran, Sampling Techniques, 1977, 6.4): of the
        work of strides and the times that they took. Whether requests come at random, in bursts of
        a few dozen or by the clock, all alike or not: the ratio is as uncertain as what stride by
        stride is above or below it.
        """
        times_s, works_s = self._times_s, self._works_s
        strides = len(times_s)
        elapsed_s, work_s = sum(times_s), sum(works_s)
        if strides < LEAST_STRIDES or elapsed_s <= 0 or work_s <= 0:
            return 1.0
        rate = work_s / elapsed_s
        squares = (
            sum(map(mul, works_s, works_s))
            - 2 * rate * sum(map(mul, works_s, times_s))
            + rate * rate * sum(map(mul, times_s, times_s))
        )
        # Few strides are less sure: Student's quantiles, to 3 % from 3 degrees of freedom on.
        freedom = strides - 1
        sure = SURE * (1 + 1.2 / freedom)
        return sure * math.sqrt(max(0.0, squares) * strides / freedom) / work_s

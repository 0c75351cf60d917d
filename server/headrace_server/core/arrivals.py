"""How work arrives: the load that the workers of a model are asked to carry, and how sure it is."""

from __future__ import annotations

import math
from collections import deque
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


class _Mark(NamedTuple):
    """The moment of one of the arrivals, and sums over all before it: of their work, and of the
    squares of the times between marks."""

    moment_s: float
    work_s: float
    strides: float


class ArrivingWork:
    """Seconds of work that arrive per second, over about the last `WINDOW` arrivals.

    A request's work is how long it would take alone. Memory and time per arrival are constant.
    """

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque(maxlen=WINDOW // STRIDE)
        self._count = 0
        self._work_s = 0.0

    def add(self, work_s: float, now: float) -> None:
        """A request of that much work arrived."""
        if self._count % STRIDE == 0:
            last = self._marks[-1] if self._marks else None
            strides = last.strides + (now - last.moment_s) ** 2 if last is not None else 0.0
            self._marks.append(_Mark(now, self._work_s, strides))
        self._count += 1
        self._work_s += work_s

    def per_second(self, now: float) -> float:
        """The estimate; 0 until more than `2 * STRIDE` arrivals are known."""
        return self._per_second(now, 0)

    @property
    def doubt(self) -> float:
        """How far off the estimate may be, as a share of it: `SURE` of its standard errors.

        From the times that `STRIDE` arrivals each took: whether arrivals come at random, in bursts
        or by the clock, their number in a window is as uncertain as these times scatter.
        """
        if len(self._marks) < LATELY:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        count = len(self._marks) - 1
        elapsed_s = last.moment_s - first.moment_s
        if elapsed_s <= 0:
            return 0.0
        scatter = max(0.0, count * (last.strides - first.strides) / elapsed_s**2 - 1.0)
        return SURE * math.sqrt(scatter / count)

    def lately_per_second(self, now: float) -> float:
        """The same of the last few dozen arrivals only."""
        return self._per_second(now, -LATELY)

    def _per_second(self, now: float, since: int) -> float:
        if len(self._marks) < LATELY:
            return 0.0
        mark = self._marks[since]
        elapsed_s = now - mark.moment_s
        return (self._work_s - mark.work_s) / elapsed_s if elapsed_s > 0 else 0.0

"""How work arrives: the load that the workers of a model are asked to carry, and its bursts."""

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

BRIEF, CLUSTERED = 0.1, 0.35
"""Arrivals come in bursts where at least `CLUSTERED` of them follow the one before within `BRIEF`
mean gaps. Of a Poisson process 10 % do, of gamma arrivals with a coefficient of variation of 2 and
4 it is 44 and 75 %, of two callers who ride together 50 %, and of a lone one's, who waits for each
answer, none."""

LINGER = 3.0
"""Gaps within bursts, as a root mean square, after which a burst is over. Twice as many change mean
latencies of gamma arrivals by less than 1 %; a tenth of the mean gap of all arrivals made pairs
that came 150 ms apart wait for 5 ms, for a third one (37 in place of 33 ms on the mean)."""


class _Mark(NamedTuple):
    """Sums over all arrivals before one of them: their number, work, followers, the squares of the
    gaps to these, and of the times between marks."""

    arrivals: int
    moment_s: float
    work_s: float
    followers: int
    squares: float
    strides: float


class ArrivingWork:
    """Seconds of work that arrive per second, over about the last `WINDOW` arrivals.

    A request's work is how long it would take alone. Memory and time per arrival are constant.
    """

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque(maxlen=WINDOW // STRIDE)
        self._count = 0
        self._work_s = 0.0
        self._followers = 0
        self._squares = 0.0
        self._last_s = -math.inf

    def add(self, work_s: float, now: float) -> None:
        """A request of that much work arrived."""
        if now < self.silent_from(BRIEF):
            self._followers += 1
            self._squares += (now - self._last_s) ** 2
        self._last_s = now
        if self._count % STRIDE == 0:
            last = self._marks[-1] if self._marks else None
            strides = last.strides + (now - last.moment_s) ** 2 if last is not None else 0.0
            sums = self._work_s, self._followers, self._squares, strides
            self._marks.append(_Mark(self._count, now, *sums))
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

    def silent_from(self, gaps: float) -> float:
        """The moment at which, if nobody arrives, as many mean gaps between arrivals will have
        passed since the last one."""
        if len(self._marks) < 2:
            return self._last_s
        first, last = self._marks[0], self._marks[-1]
        mean_gap_s = (last.moment_s - first.moment_s) / (last.arrivals - first.arrivals)
        return self._last_s + gaps * mean_gap_s

    def burst_until(self, most_s: float) -> float:
        """The moment up to which the next one of the last arrival's burst is likely to come, at
        most `most_s` after it; that is the past where arrivals do not come in bursts."""
        if len(self._marks) < LATELY:
            return -math.inf
        first, lately, last = self._marks[0], self._marks[-LATELY], self._marks[-1]
        # Bursts that ended are forgotten soon: else a whole window of others would wait for them.
        if not (self._clustered(first) and self._clustered(lately)):
            return -math.inf
        gap_s = math.sqrt((last.squares - first.squares) / (last.followers - first.followers))
        return self._last_s + min(most_s, LINGER * gap_s)

    def _clustered(self, since: _Mark) -> bool:
        """Whether arrivals have come in bursts since that mark."""
        last = self._marks[-1]
        followers = last.followers - since.followers
        return followers >= CLUSTERED * (last.arrivals - since.arrivals)

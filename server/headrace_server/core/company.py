"""How often somebody comes with whom a request may ride: the gaps between arrivals of its kind."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from headrace_server.core.arrivals import LATELY, STRIDE, WINDOW

BRIEF, CLUSTERED = 0.1, 0.35
"""Arrivals come in bursts where at least `CLUSTERED` of them follow the one before within `BRIEF`
mean gaps. Of a Poisson process 10 % do, of gamma arrivals with a coefficient of variation of 2 and
4 it is 44 and 75 %, of two callers who ride together 50 %, and of a lone one's, who waits for each
answer, none."""

LINGER = 3.0
"""Gaps within bursts, as a root mean square, after which a burst is over. Twice as many change mean
latencies of gamma arrivals by less than 1 %; a tenth of the mean gap of all arrivals made pairs
that came 150 ms apart wait for 5 ms, for a third one (37 in place of 33 ms on the mean)."""

RARE = 0.002
"""Bursts are over when so many in a row have come alone, not right behind another, that this share
of all such runs is as long: three after a closed loop of 16, five and eleven of gamma arrivals with
a coefficient of variation of 4 and 2. Else dozens of callers would wait in vain after a closed loop
has ended: for 3 ms each, where single rows take 60 and a batch saves a fifth. At 0.01 another half
per cent of their latency is saved, and a tenth of a point of what is on time in bursts is lost."""


class _Mark(NamedTuple):
    """One of the arrivals, and sums over all before it: those who followed another one soon, and
    the squares of the gaps to these."""

    moment_s: float
    followers: int
    squares: float


class Company:
    """Arrivals of requests that could share a batch. Memory and time per arrival are constant."""

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque(maxlen=WINDOW // STRIDE)
        self._count = 0
        self._followers = 0
        self._alone = 0
        self._most_alone = math.inf
        self._squares = 0.0
        self._last_s = -math.inf
        self.gap_s = math.inf
        """The mean time between two of them; infinite until more than `STRIDE` have come."""
        self.burst_gap_s = 0.0
        """The time after one of them within which the next one of its burst is likely to come; 0
        where they do not come in bursts."""

    def add(self, now: float) -> None:
        """One more arrived."""
        gap_s = now - self._last_s
        self._alone += 1
        if gap_s < BRIEF * self.gap_s < math.inf:
            self._alone = 0
            self._followers += 1
            self._squares += gap_s * gap_s
        self._last_s = now
        if self._count % STRIDE == 0:
            self._marks.append(_Mark(now, self._followers, self._squares))
            self.gap_s = self._mean_gap_s()
            self.burst_gap_s = self._longest_gap_in_bursts_s()
        if self._alone >= self._most_alone:
            self.burst_gap_s = 0.0
        self._count += 1

    def _mean_gap_s(self) -> float:
        strides = len(self._marks) - 1
        if strides < 1:
            return math.inf
        return (self._marks[-1].moment_s - self._marks[0].moment_s) / (strides * STRIDE)

    def _longest_gap_in_bursts_s(self) -> float:
        strides = len(self._marks) - 1
        if strides < LATELY - 1:
            return 0.0
        # Bursts that ended are forgotten soon: else a whole window of others would wait for them.
        shares = self._followed(strides), self._followed(LATELY - 1)
        if min(shares) < CLUSTERED:
            return 0.0
        share = min(max(shares), 0.99)  # of a few dozen: that all followed does not say that all do
        self._most_alone = math.log(RARE) / math.log1p(-share)
        first, last = self._marks[0], self._marks[-1]
        squares = (last.squares - first.squares) / (last.followers - first.followers)
        return LINGER * math.sqrt(squares)

    def _followed(self, strides: int) -> float:
        """The share that came right behind another during the last so many strides."""
        followers = self._marks[-1].followers - self._marks[-1 - strides].followers
        return followers / (strides * STRIDE)

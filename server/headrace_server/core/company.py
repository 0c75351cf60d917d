"""Who comes soon to ride with a request: the gaps between arrivals of its kind, and bursts."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

WINDOW = 256
"""Arrivals that are looked back over. With 128, one of a dozen bursts in which requests come four
times as often as on the mean goes unseen; with 512, no more is on time."""

ENOUGH = 48
"""Arrivals from which bursts can be told."""

STRIDE = 16
"""Arrivals after which bursts are looked for again: that sorts the window."""

DENSE = 1.5
"""In a burst they come so many times as often as on the mean. At 2, bursts of four times as often
are left too soon (up to half a point less on time); at 1.2 and 1, a recorded trace is seen to have
bursts where there are none, and loses up to a point and more than one."""

TOLERANCE = 0.1
"""By how much what riding along is worth may change, as a share, before bursts are looked for
again."""

LEAST_GAIN = 0.1
"""The share of what riding together saves that waiting must gain on the mean: Poisson arrivals
among which some are closer by chance gain a few per cent."""

SLACK = 1.1
"""How much longer than the gaps in bursts the next one is waited for: else whoever comes at the
pace of a clock would come just after the wait."""

RARE = 0.002
"""Bursts are over when so many in a row have come alone that this share of all such runs is as
long: three after a closed loop of 16, five and eleven of gamma arrivals with a coefficient of
variation of 4 and 2. Else dozens of callers would wait in vain after a closed loop has ended: for
3 ms each, where single rows take 60 and a batch saves a fifth."""


class Company:
    """Arrivals of requests that could share a batch. Memory is constant, and so is the time per
    arrival, next to a sort of the window every `STRIDE` of them where bursts are asked for."""

    def __init__(self) -> None:
        self._moments: deque[float] = deque(maxlen=WINDOW + 1)
        self._alone = 0
        self._most_alone = math.inf
        self._rest_s = 0.0
        self._worth_s = 0.0
        self._stale_in = 0

    @property
    def gap_s(self) -> float:
        """The mean time between two of them; infinite until more than `STRIDE` have come."""
        gaps = len(self._moments) - 1
        return (self._moments[-1] - self._moments[0]) / gaps if gaps >= STRIDE else math.inf

    @property
    def last_s(self) -> float:
        """When the last of them came; long ago if nobody has."""
        return self._moments[-1] if self._moments else -math.inf

    def add(self, now: float) -> None:
        """One more arrived."""
        self._alone = 0 if now - self.last_s <= self._rest_s else self._alone + 1
        self._stale_in -= 1
        self._moments.append(now)

    def rest_of_burst_s(self, worth_s: float) -> float:
        """How long after one of them the next one is worth waiting for, if it is worth so many
        seconds that it rides along; 0 where they do not come in bursts, or in none for a while.

        The best moment to stop waiting, had the gaps been those of the window: the one that gains
        most on the mean, `worth_s` for each gap that has ended by then, less the wait. Where the
        next one is as likely to come however long nobody has, this is to wait for ever or not at
        all; so the wait is measured against a share of the mean gap, too.
        """
        if self._stale_in <= 0 or abs(worth_s - self._worth_s) > TOLERANCE * self._worth_s:
            self._look_for_bursts(worth_s)
        return self._rest_s if self._alone < self._most_alone else 0.0

    def _look_for_bursts(self, worth_s: float) -> None:
        self._stale_in, self._worth_s = STRIDE, worth_s
        if self._rest_s == 0.0:
            self._alone = 0  # until now everybody counted as alone
        self._rest_s, self._most_alone = 0.0, math.inf
        gaps = sorted(b - a for a, b in pairwise(self._moments))
        count = len(gaps)
        if count < ENOUGH:
            return
        worth_s = min(worth_s, self.gap_s / DENSE)
        most, waited_s, ended = LEAST_GAIN * worth_s * count, 0.0, 0
        for number, gap_s in enumerate(gaps, 1):
            if gap_s > worth_s:
                break
            waited_s += gap_s
            gained_s = worth_s * number - waited_s - gap_s * (count - number)
            if gained_s > most:
                most, ended = gained_s, number
        if ended:
            self._rest_s = SLACK * gaps[ended - 1]
            # Of a few dozen: that all rode with another one does not say that all will.
            self._most_alone = math.log(RARE) / math.log1p(-min(ended / count, 0.99))

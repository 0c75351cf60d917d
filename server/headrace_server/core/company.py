"""Who comes soon to ride with a request: the gaps between arrivals of its kind, and bursts."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice, pairwise
from typing import NamedTuple

WINDOW = 256
"""Arrivals that are looked back over. Simulated, up to 0.6 points less are on time with 128
(bursts, one worker), and with 512 no more on the mean."""

ENOUGH = 48
"""Arrivals from which bursts can be told."""

STRIDE = 16
"""Arrivals after which bursts are looked for again: that sorts the window."""

DENSE = 1.5
"""In a burst they come so many times as often as on the mean. At 2, bursts of four times as often
are left too soon (up to 0.7 points less on time); at 1.2 and 1, a recorded trace is seen to have
bursts where there are none, and loses up to a point and more than one."""

TOLERANCE = 0.1
"""To what share of it the worth of riding along counts."""

LEAST_GAIN = 0.1
"""The share of what riding together saves that waiting must gain on the mean: Poisson arrivals
among which some are closer by chance gain a few per cent."""

SLACK = 1.1
"""How much longer than the gaps in bursts the next one is waited for: else whoever comes at the
pace of a clock would come just after the wait."""

RARE = 0.002
"""Bursts are over when so many in a row have come alone that this share of all such runs is as
long: three after a closed loop of 16, five and ten to fifteen of gamma arrivals with a coefficient
of variation of 4 and 2. Else dozens of callers would wait in vain after a closed loop has ended:
for 3 ms each, where single rows take 60 and a batch saves a fifth."""


class _Rest(NamedTuple):
    """How long the next one of a burst is waited for, and how many have come alone when it is
    over."""

    seconds: float
    alone: int


_NO_REST = _Rest(0.0, 0)


class Company:
    """Arrivals of requests that could share a batch. Memory is constant, and so is the time per
    arrival, next to a copy of the window every `STRIDE` of them, and a sort of it where bursts are
    asked for. What is answered does not depend on what was asked before."""

    def __init__(self) -> None:
        self._moments: deque[float] = deque(maxlen=WINDOW + 1)
        self._fresh_for = STRIDE
        self._window: tuple[float, ...] = ()
        self._gaps: list[float] = []
        self._rests: dict[int, _Rest] = {}

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
        self._moments.append(now)
        self._fresh_for -= 1
        if not self._fresh_for:
            self._fresh_for = STRIDE
            self._window = tuple(self._moments)
            self._gaps.clear()
            self._rests.clear()

    def rest_of_burst_s(self, worth_s: float) -> float:
        """How long after one of them the next one is worth waiting for, if it is worth so many
        seconds that it rides along; 0 where they do not come in bursts, or in none for a while.

        The best moment to stop waiting, had the gaps been those of the window: the one that gains
        most on the mean, `worth_s` for each gap that has ended by then, less the wait. Where the
        next one is as likely to come however long nobody has, this is to wait for ever or not at
        all; so the wait is measured against a share of the mean gap, too.
        """
        if worth_s <= 0.0:
            return 0.0
        # Requests of several lengths ask for several worths in turn.
        step = round(math.log(worth_s) / TOLERANCE)
        rest = self._rests.get(step)
        if rest is None:
            rest = self._rests[step] = self._best_rest(math.exp(step * TOLERANCE))
        return 0.0 if self._burst_is_over(rest) else rest.seconds

    def _best_rest(self, worth_s: float) -> _Rest:
        window, gaps = self._window, self._gaps
        count = len(window) - 1
        if count < ENOUGH:
            return _NO_REST
        if not gaps:
            gaps.extend(sorted(after - before for before, after in pairwise(window)))
        worth_s = min(worth_s, (window[-1] - window[0]) / count / DENSE)
        most, waited_s, ended = LEAST_GAIN * worth_s * count, 0.0, 0
        for number, gap_s in enumerate(gaps, 1):
            if gap_s > worth_s:
                break
            waited_s += gap_s
            gained_s = worth_s * number - waited_s - gap_s * (count - number)
            if gained_s > most:
                most, ended = gained_s, number
        if not ended:
            return _NO_REST
        # Of a few dozen: that all rode with another one does not say that all will.
        alone = 1.0 - min(ended / count, 0.99)
        return _Rest(SLACK * gaps[ended - 1], math.ceil(math.log(RARE) / math.log(alone)))

    def _burst_is_over(self, rest: _Rest) -> bool:
        """Whether as many as its `alone` came alone of late."""
        latest = islice(reversed(self._moments), rest.alone + 1)
        return all(after - before > rest.seconds for after, before in pairwise(latest))

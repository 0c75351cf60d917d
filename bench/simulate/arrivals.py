"""When requests arrive: processes of one mean rate and different burstiness.

All are made for a mean of one arrival per second and stretched to the rate that is asked for, so
that a higher load is the same story told faster: comparisons between loads and policies then
differ by what is compared, not by luck (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random

Moments = list[float]


def poisson(count: int, random: Random) -> Moments:
    """Independent arrivals."""
    return _sums([random.expovariate(1.0) for _ in range(count)])


def gamma(count: int, random: Random, cv: float) -> Moments:
    """Independent gaps with this coefficient of variation: bursts and silences."""
    shape = 1.0 / (cv * cv)
    return _sums([random.gammavariate(shape, 1.0 / shape) for _ in range(count)])


def diurnal(count: int, random: Random) -> Moments:
    """A rate that swings by half around its mean, twice in the run, with short bursts of twice
    the rate on top: thinned from a Poisson process (Lewis and Shedler, 1979)."""
    period = count / 2.0
    bursts = sorted(random.random() * count for _ in range(8))

    def rate(t: float) -> float:
        burst = any(start <= t < start + count / 100 for start in bursts)
        return (1.0 + 0.5 * math.sin(2 * math.pi * t / period)) * (2.0 if burst else 1.0)

    moments: Moments = []
    t = 0.0
    while len(moments) < count:
        t += random.expovariate(3.0)
        if random.random() * 3.0 < rate(t):
            moments.append(t)
    return _to_unit_rate(moments)


@cache
def recorded() -> list[float]:
    """Moments in seconds of 377 requests to a code completion service, within 45 s: their gaps
    have a coefficient of variation of 4.2.

    From the Azure LLM inference trace 2023 (code, 18:20:07 to 18:20:52, rounded to milliseconds),
    licensed under CC BY and published with Patel et al., Splitwise, ISCA 2024.
    """
    return [float(moment) for moment in (Path(__file__).parent / "trace.txt").read_text().split()]


def replayed(count: int, random: Random) -> Moments:
    """What was `recorded`, over and over, from a random place on."""
    gaps = [b - a for a, b in pairwise(recorded())]
    start = random.randrange(len(gaps))
    return _to_unit_rate(_sums([gaps[(start + i) % len(gaps)] for i in range(count)]))


PROCESSES: dict[str, Callable[[int, Random], Moments]] = {
    "poisson": poisson,
    "cv2": lambda count, random: gamma(count, random, 2.0),
    "cv4": lambda count, random: gamma(count, random, 4.0),
    "diurnal": diurnal,
    "replayed": replayed,
}


def _sums(gaps: Sequence[float]) -> Moments:
    moments, t = [], 0.0
    for gap in gaps:
        t += gap
        moments.append(t)
    return moments


def _to_unit_rate(moments: Moments) -> Moments:
    scale = len(moments) / moments[-1]
    return [t * scale for t in moments]

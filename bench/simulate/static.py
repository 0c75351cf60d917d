"""The rivals: the best that fixed settings can do, tuned anew for every point of the grid.

`serve` is a lean model of one queue under fixed size, delay and bound: the dynamic batcher of
today's servers, with expired requests dropped at once, which they do not do. It stands in for the
real scheduler while dozens of settings are tried, and agrees with it to the request
(`tests/unit/bench/test_simulate.py`).

There are two sets of settings to choose from. `round_numbers` are those that people try: powers of
two, as Triton's Model Analyzer does, and whole milliseconds. `fitted` ones are shares of what the
point allows, which takes its capacity to know.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import product

from bench.simulate.profiles import Profile


@dataclass(frozen=True, slots=True)
class Settings:
    """A static policy: rows at most, seconds the oldest waits for company, requests waiting."""

    size: int
    delay_s: float
    cap: int

    def __str__(self) -> str:
        cap = "no cap" if self.cap >= NO_CAP else f"cap {self.cap}"
        return f"size {self.size}, delay {self.delay_s * 1e3:.2g} ms, {cap}"


NO_CAP = 1 << 30


def round_numbers(profile: Profile) -> list[Settings]:
    """At least 80 settings in round numbers."""
    sizes = [1 << i for i in range(profile.most_rows.bit_length())]
    delays = [0.0, 0.001, 0.002, 0.005, 0.010]
    return [Settings(*setting) for setting in product(sizes, delays, [8, 16, 32, 64, 128, NO_CAP])]


def fitted(profile: Profile, rate: float, objective_s: float) -> list[Settings]:
    """At least 80 settings around what `rate`, the capacity at load 1, makes sensible."""
    sizes = {1, profile.most_rows} | {
        max(1, round(profile.most_rows * share)) for share in (0.12, 0.2, 0.28, 0.4, 0.6)
    }
    delays = [objective_s * share for share in (0.0, 0.1, 0.25, 0.4)]
    caps = [max(1, round(rate * objective_s * share)) for share in (0.2, 0.35, 0.5, 0.75)]
    return [Settings(*setting) for setting in product(sorted(sizes), delays, [*caps, NO_CAP])]


def serve(
    arrivals: Sequence[float],
    duration_s: Callable[[int, int], float],
    settings: Settings,
    *,
    workers: int,
    objective_s: float,
    lengths: Sequence[int] | None = None,
) -> int:
    """How many requests are answered on time; `duration_s(rows, length)` is what the next batch
    takes, from the decision on: it is bound to a worker as late as possible. All are padded to the
    longest of it."""
    size, delay_s, cap = settings.size, settings.delay_s, settings.cap
    free = [0.0] * workers
    heapify(free)
    waiting: deque[int] = deque()
    on_time = 0
    now = 0.0
    for number, moment in enumerate((*arrivals, math.inf)):
        while waiting:
            oldest_s = arrivals[waiting[0]]
            ready_s = now if len(waiting) >= size else oldest_s + delay_s
            start_s = max(free[0], ready_s, now)
            expires_s = oldest_s + objective_s
            if expires_s <= start_s:
                if expires_s > moment:
                    break
                waiting.popleft()
                continue
            if start_s >= moment:
                break
            count = min(size, len(waiting))
            now = start_s
            riders = [waiting.popleft() for _ in range(count)]
            end_s = start_s + duration_s(count, max(lengths[i] for i in riders) if lengths else 0)
            heapreplace(free, end_s)
            for rider in riders:
                on_time += end_s <= arrivals[rider] + objective_s
        now = moment
        if len(waiting) < cap:
            waiting.append(number)
    return on_time

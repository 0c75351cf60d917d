"""What no scheduler can beat: the exact optimum of one worker, a bound for several, the ceiling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.simulate.profiles import Profile


def most_on_time(
    arrivals: Sequence[float], profile: Profile, *, workers: int, objective_s: float
) -> int:
    """The most requests of one size that could be answered on time by who knows the future.

    `finish[k]` after the first i requests: the earliest moment at which the worker is done with k
    of them on time. The next request is left out, or the next b ride together, which is no loss:
    with one objective for all, the order of arrival is the order of deadlines, and whoever is
    left out of the middle of a batch could take the place of its first member. O(n^2 b).

    With several workers it is an upper bound: they are made one that is as many times as fast and
    may set batches aside, so it could do whatever they do; no batch ends sooner after the arrival
    of its last member than it would on one of them. The order of arrival is that of release and
    of due dates, so first come, first served is optimal there too.
    """
    count = len(arrivals)
    durations = [profile.duration_s(rows, 0) for rows in range(profile.most_rows + 1)]
    finish = [np.full(count + 1, math.inf) for _ in range(profile.most_rows + 1)]
    ring = len(finish)
    finish[0][0] = 0.0
    for i in range(count):
        done = finish[i % ring]
        np.minimum(finish[(i + 1) % ring], done, out=finish[(i + 1) % ring])
        due_s = arrivals[i] + objective_s
        for rows in range(1, min(profile.most_rows, count - i) + 1):
            last_s = arrivals[i + rows - 1]
            if last_s + durations[rows] > due_s:
                break
            end = np.maximum(done[: count + 1 - rows], last_s)
            end += durations[rows] / workers
            end[end > due_s] = math.inf
            target = finish[(i + rows) % ring][rows:]
            np.minimum(target, end, out=target)
        finish[i % ring] = np.full(count + 1, math.inf)
    return int(np.flatnonzero(np.isfinite(finish[count % ring]))[-1])


def capacity(profile: Profile, *, workers: int, objective_s: float) -> float:
    """Requests per second at load 1: the workers start in turn, each with the batches with the
    most requests per second that a request can still ride in on time if it just missed one."""
    rates = [
        workers * rows / duration_s
        for rows in range(1, profile.most_rows + 1)
        if (duration_s := profile.duration_s(rows, 0)) * (1 + 1 / workers) <= objective_s
    ]
    return max(rates, default=workers / profile.duration_s(1, 0))


def ceiling(profile: Profile, rate: float, *, workers: int, objective_s: float) -> float:
    """On-time requests per second that a fluid of arrivals at `rate` would allow.

    A batch of b needs b arrivals that are still young enough: they take b / rate to come, and the
    batch then runs, within the objective. No fewer arrive than are served.
    """
    served = 0.0
    for tenths in range(10, 10 * profile.most_rows + 1):
        rows = tenths / 10
        low = math.floor(rows)
        share = rows - low
        duration_s = (1 - share) * profile.duration_s(low, 0)
        duration_s += share * profile.duration_s(min(low + 1, profile.most_rows), 0)
        if rows / rate + duration_s <= objective_s:
            served = max(served, workers * rows / duration_s)
    return min(rate, served)

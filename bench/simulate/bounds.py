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

    `finish[i, k]`: the earliest moment at which the worker is done with the first i requests, k of
    them missed. The next request is left out, or the next b ride together, which is no loss: with
    one objective for all, the order of arrival is the order of deadlines, and whoever is left out
    of the middle of a batch could take the place of its first member. O(n q b) with q waiting,
    since only k between the fewest possible and the fewest that leave the worker idle matter.

    With several workers it is an upper bound: they are made one that is as many times as fast and
    may set batches aside, so it could do whatever they do; no batch ends sooner after the arrival
    of its last member than it would on one of them. The order of arrival is that of release and
    of due dates, so first come, first served is optimal there too. (That batches of neighbours are
    no loss is proved for several workers only where no batch starts after and ends before another
    whose members all came between its own; no case that beats the bound has been found.)
    """
    count = len(arrivals)
    moments = np.array(arrivals)
    durations = np.array([profile.duration_s(rows, 0) for rows in range(1, profile.most_rows + 1)])
    ring = profile.most_rows + 1
    # finish[i % ring, missed], of the last `ring` values of i; columns are misses, so that a batch
    # moves down and only whoever is left out moves to the right.
    finish = np.full((ring, count + 1), math.inf)
    finish[0, 0] = 0.0
    for i in range(count):
        done = finish[i % ring]
        # Whoever is idle when request i comes gains nothing by having missed more.
        idle = done <= moments[i]
        first = int(np.argmax(done < math.inf))
        end = int(np.argmax(idle)) + 1 if idle.any() else i + 1
        live = done[first:end].copy()
        done[:] = math.inf
        after = finish[(i + 1) % ring, first + 1 : end + 1]
        np.minimum(after, live, out=after)
        due_s = moments[i] + objective_s
        # When a batch can begin at the earliest, by its last member.
        last_s = moments[i : i + profile.most_rows] + profile.hop_s
        rows = int(np.count_nonzero(last_s + durations[: len(last_s)] <= due_s))
        if rows == 0:
            continue
        ends = np.maximum(live, last_s[:rows, None]) + durations[:rows, None] / workers
        ends[ends > due_s] = math.inf
        targets = (np.arange(i + 1, i + 1 + rows)) % ring
        finish[targets, first:end] = np.minimum(finish[targets, first:end], ends)
    return count - int(np.argmax(finish[count % ring] < math.inf))


def capacity(profile: Profile, *, workers: int, objective_s: float) -> float:
    """Requests per second at load 1: the workers start in turn, each with the batches with the
    most requests per second that a request can still ride in on time if it just missed one. Where
    lengths differ: as if all were those in the middle."""
    length = profile.typical
    rates = [
        workers * rows / duration_s
        for rows in range(1, profile.most_rows + 1)
        if (duration_s := profile.duration_s(rows, length)) * (1 + 1 / workers) <= objective_s
    ]
    return max(rates, default=workers / profile.duration_s(1, length))


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

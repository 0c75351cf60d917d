"""The search for who rides together where lengths differ: runs of neighbours in length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from headrace_server.core.cost import Curve
from headrace_server.core.request import Request


@dataclass(frozen=True, slots=True)
class Window:
    """A run of neighbours in length: `requests[first:end]` of those searched.

    `rate`: the seconds that its members would take alone, over `duration_s`, its own.
    """

    first: int
    end: int
    rows: int
    rate: float
    duration_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits a window: rows, bytes once padded, and the end of each member's patience.

    A batch begins at `start_s` and is planned to take `margin` times as long as expected; a
    margin of 0 leaves deadlines aside.
    """

    most_rows: int
    most_bytes: int
    start_s: float
    margin: float


def cheapest_group(near: Sequence[Request], at: int, curve: Curve, bounds: Bounds) -> Window:
    """The group of `near[at]` when all of `near` is divided into the batches that take the least
    time in sum, deadlines left aside.

    Neighbours in length always make the cheapest batches, so only runs are considered:
    `least[end]`, the least time for the first `end` requests, comes of the best last run. Against
    the one best window around the same request, whose leftovers may fit nobody, throughput rises
    by 1 to 2 % and the 99th percentile of latencies falls by 5 to 10 % (closed loop, sentences,
    8 to 256 in flight). O(n) times the rows of a batch.

    Args:
        near: ascending by length.
        at: the request that must ride.
    """
    rows = [0, *accumulate(request.rows for request in near)]
    row_nbytes = [request.nbytes / request.rows for request in near]
    most_rows, most_bytes = bounds.most_rows, bounds.most_bytes
    base, row, element, pair = curve.base, curve.row, curve.element, curve.pair
    least, first_of = [0.0], [0]
    for end in range(1, len(near) + 1):
        length = near[end - 1].length
        per_row = row + length * (element + length * pair)
        to_rows = rows[end]
        first = end - 1
        # One that is larger than every bound still rides, alone.
        best_first, best = first, least[first] + base + (to_rows - rows[first]) * per_row
        largest = row_nbytes[first]
        for first in range(end - 2, -1, -1):
            count = to_rows - rows[first]
            if row_nbytes[first] > largest:
                largest = row_nbytes[first]
            if count > most_rows or count * largest > most_bytes:
                break
            total_s = least[first] + base + count * per_row
            if total_s < best:
                best_first, best = first, total_s
        least.append(best)
        first_of.append(best_first)
    end = len(near)
    while first_of[end] > at:
        end = first_of[end]
    first = first_of[end]
    members = near[first:end]
    count = rows[end] - rows[first]
    duration_s = curve.at(count, members[-1].length)
    work_s = sum(curve.at(request.rows, request.length) for request in members)
    soonest_s = min(request.deadline_s for request in members)
    return Window(first, end, count, work_s / duration_s, duration_s, soonest_s)


def best_window(near: Sequence[Request], at: int, curve: Curve, bounds: Bounds) -> Window:
    """The window around `near[at]` that does the most work per second.

    Args:
        near: ascending by length.
        at: the request that must ride. Alone it rides whatever the bounds say.

    O(n^2) in the number of windows, each one multiplication or two; n is bounded by the batch
    size, so the search stays a small part of the batch that it decides.
    """
    rows = [0, *accumulate(request.rows for request in near)]
    work = [0.0, *accumulate(curve.at(request.rows, request.length) for request in near)]
    row_nbytes = [request.nbytes / request.rows for request in near]
    widest = 0.0
    most_rows, most_bytes = bounds.most_rows, bounds.most_bytes
    start_s, margin = bounds.start_s, bounds.margin
    base, row, element, pair = curve.base, curve.row, curve.element, curve.pair
    steps = curve.steps or (1.0,)
    beyond = len(steps) - 1
    best = best_s = 0.0
    best_deadline_s = soonest_s = math.inf
    first, end = at, at + 1
    for last in range(at, len(near)):
        soonest_s = deadline_s = min(soonest_s, near[last].deadline_s)
        length = near[last].length
        per_row = row + length * (element + length * pair)
        to_rows, to_work = rows[last + 1], work[last + 1]
        largest = widest = max(widest, row_nbytes[last])
        for start in range(at, -1, -1):
            count = to_rows - rows[start]
            largest = max(largest, row_nbytes[start])
            if (count > most_rows or count * largest > most_bytes) and start < last:
                break
            duration_s = (base + count * per_row) * steps[min(count, beyond)]
            deadline_s = min(deadline_s, near[start].deadline_s)
            if start_s + margin * duration_s > deadline_s and start < last:
                break
            rate = (to_work - work[start]) / duration_s
            if rate > best:
                best, first, end = rate, start, last + 1
                best_s, best_deadline_s = duration_s, deadline_s
    return Window(first, end, rows[end] - rows[first], best, best_s, best_deadline_s)

"""The search for who rides together where lengths differ: runs of neighbours in length.

Both searches look at all runs, or at those that begin and end at the cuts of `Neighbours`.
`head_group` says which of the two is worth its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from headrace_server.core.cost import Curve
from headrace_server.core.request import Request

MAX_REACH = 64
"""Neighbours on each side that are looked at: with batches of 64 rows, some 6,000 runs of them and
about a millisecond. No more than a batch holds are looked at in any case."""

RUN_S, SEARCH_SHARE = 1.5e-7, 0.02
"""Seconds that one run of neighbours takes to look at, and the share of a batch that all of them
may take: where it is more, batches are short and only coarse runs are looked at."""


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

    def too_late(self, window: Window) -> bool:
        """Whether somebody in the window would miss his deadline."""
        return self.start_s + self.margin * window.duration_s > window.deadline_s


GRAIN = 4
"""Coarse units hold a `GRAIN`-th as many requests as lie between them and the one that must ride:
so windows of every size are among those searched, to within an eighth, and of 129 neighbours there
are 32 units, 500 runs of them in place of 8,000."""


class Neighbours:
    """Requests ascending by length, in the units that windows are made of.

    Each is a unit of its own, or, where `coarse`, those far from the one that must ride are taken
    together. No unit exceeds the bounds, unless it is a single request.

    Args:
        requests: ascending by length.
        at: the one that must ride.
    """

    __slots__ = ("at", "cuts", "deadlines", "lengths", "requests", "rows", "widest")

    def __init__(
        self, requests: Sequence[Request], at: int, bounds: Bounds, *, coarse: bool = False
    ) -> None:
        rows = [0, *accumulate(request.rows for request in requests)]
        widest = [request.nbytes / request.rows for request in requests]
        deadlines = [request.deadline_s for request in requests]
        cuts: Sequence[int] = range(len(rows))
        if coarse:
            cuts = _coarse_cuts(rows, widest, at, bounds)
            units = list(pairwise(cuts))
            rows = [rows[cut] for cut in cuts]
            widest = [max(widest[first:end]) for first, end in units]
            deadlines = [min(deadlines[first:end]) for first, end in units]
        self.requests = requests
        self.cuts = cuts
        """Where each unit begins; the last one is the end."""
        self.at = cuts.index(at)
        """The unit that must ride, a single request."""
        self.rows = rows
        """Before each unit, and in all."""
        self.lengths = [requests[cut - 1].length for cut in cuts[1:]]
        self.widest = widest
        """Bytes of the widest row of each unit."""
        self.deadlines = deadlines
        """The soonest of each unit."""


def _coarse_cuts(
    rows: Sequence[int], widest: Sequence[float], at: int, bounds: Bounds
) -> list[int]:
    def fits(first: int, end: int) -> bool:
        count = rows[end] - rows[first]
        within = count <= bounds.most_rows and count * max(widest[first:end]) <= bounds.most_bytes
        return within or end == first + 1

    before = [at]
    while (end := before[-1]) > 0:
        first = max(0, end - max(1, (at - end) // GRAIN))
        while not fits(first, end):
            first += 1
        before.append(first)
    cuts = [*reversed(before), at + 1]
    while (first := cuts[-1]) < len(widest):
        end = min(len(widest), first + max(1, (first - at) // GRAIN))
        while not fits(first, end):
            end -= 1
        cuts.append(end)
    return cuts


def head_group(
    requests: Sequence[Request], at: int, curve: Curve, bounds: Bounds
) -> tuple[Window, Neighbours]:
    """The cheapest group of the one that must ride, and the neighbours that it was found among.

    Args:
        requests: ascending by length.
        at: the one that must ride.
    """
    head = requests[at]
    most = min(len(requests), bounds.most_rows)
    short = SEARCH_SHARE * curve.at(most, head.length) < len(requests) * most * RUN_S
    # Under overload most heads are refused: that is decided by coarse runs, which cost little.
    dated = head.deadline_s < math.inf
    near = Neighbours(requests, at, bounds, coarse=short or dated)
    window = cheapest_group(near, curve, bounds)
    if dated and not short and not bounds.too_late(window):
        near = Neighbours(requests, at, bounds)
        window = cheapest_group(near, curve, bounds)
    return window, near


def cheapest_group(near: Neighbours, curve: Curve, bounds: Bounds) -> Window:
    """The group of the one that must ride when all neighbours are divided into the batches that
    take the least time in sum, deadlines left aside.

    Neighbours in length always make the cheapest batches, so only runs are considered:
    `least[end]`, the least time for the first `end` requests, comes of the best last run. Against
    the one best window around the same request, whose leftovers may fit nobody, throughput rises
    by 1 to 2 % and the 99th percentile of latencies falls by 5 to 10 % (closed loop, sentences,
    8 to 256 in flight). O(n) times the rows of a batch, for n units.
    """
    rows, row_nbytes, lengths = near.rows, near.widest, near.lengths
    most_rows, most_bytes = bounds.most_rows, bounds.most_bytes
    base, row, element, pair = curve.base, curve.row, curve.element, curve.pair
    least, first_of = [0.0], [0]
    for end, length in enumerate(lengths, 1):
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
    end = len(lengths)
    while first_of[end] > near.at:
        end = first_of[end]
    first = first_of[end]
    begin, stop = near.cuts[first], near.cuts[end]
    count = rows[end] - rows[first]
    duration_s = curve.at(count, lengths[end - 1])
    work_s = sum(curve.at(r.rows, r.length) for r in near.requests[begin:stop])
    soonest_s = min(near.deadlines[first:end])
    return Window(begin, stop, count, work_s / duration_s, duration_s, soonest_s)


def best_window(near: Neighbours, curve: Curve, bounds: Bounds) -> Window:
    """The window around the one that must ride that does the most work per second. Alone it rides
    whatever the bounds say. O(n^2) windows for n units, each one multiplication or two.
    """
    at, rows, row_nbytes, lengths = near.at, near.rows, near.widest, near.lengths
    deadlines = near.deadlines
    by_request = [0.0, *accumulate(curve.at(r.rows, r.length) for r in near.requests)]
    work = [by_request[cut] for cut in near.cuts]
    widest = 0.0
    most_rows, most_bytes = bounds.most_rows, bounds.most_bytes
    start_s, margin = bounds.start_s, bounds.margin
    base, row, element, pair = curve.base, curve.row, curve.element, curve.pair
    steps = curve.steps or (1.0,)
    beyond = len(steps) - 1
    best = best_s = 0.0
    best_deadline_s = soonest_s = math.inf
    first, end = at, at + 1
    for last in range(at, len(lengths)):
        soonest_s = deadline_s = min(soonest_s, deadlines[last])
        length = lengths[last]
        per_row = row + length * (element + length * pair)
        to_rows, to_work = rows[last + 1], work[last + 1]
        largest = widest = max(widest, row_nbytes[last])
        for start in range(at, -1, -1):
            count = to_rows - rows[start]
            largest = max(largest, row_nbytes[start])
            if (count > most_rows or count * largest > most_bytes) and start < last:
                break
            duration_s = (base + count * per_row) * steps[min(count, beyond)]
            deadline_s = min(deadline_s, deadlines[start])
            if start_s + margin * duration_s > deadline_s and start < last:
                break
            rate = (to_work - work[start]) / duration_s
            if rate > best:
                best, first, end = rate, start, last + 1
                best_s, best_deadline_s = duration_s, deadline_s
    count = rows[end] - rows[first]
    return Window(near.cuts[first], near.cuts[end], count, best, best_s, best_deadline_s)

"""The learned policy: who rides together, decided by what a batch costs.

The most urgent request anchors the batch, so nothing can starve. Around it, in order of length,
the contiguous window goes that does the most *work per second*: the time its members would take
alone, over the time they take together. Counting requests instead would drag in everyone whom the
padding ruins; any window without the anchor could leave it waiting for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate

from headrace_server.core.cost import CostModel, Curve, Sample
from headrace_server.core.policy import Formation, Hold
from headrace_server.core.queue import Queue
from headrace_server.core.request import Batch, DispatchReason, Request

WORTHWHILE = 0.97
"""A smaller batch is taken when it does at least this share of the best one's work per second:
where batching gains next to nothing, nobody waits for it."""


MAX_REACH = 64
"""Neighbours on each side that are looked at: some 2,000 windows, about a millisecond."""

PACE_S = 0.001
COMPANY = 3
PLENTY = 8
"""After a batch of at least `COMPANY` requests the next begins `PACE_S` after it began, or when
`PLENTY` rows wait. Batches of less than a millisecond cost the server more than the device: under
load this saves a quarter of the CPU per request and raises throughput by a quarter (784-512-512-10
on 2 cores, 64 in flight); longer batches, and callers who come one or two at a time, never wait."""

MAX_MARGIN = 2.0
"""The most by which the cost model's own margin is believed when deadlines are looked at."""


class AdaptivePolicy:
    """Forms the batches that pay; waits for more only between batches of less than `PACE_S`.

    Starvation is impossible by construction: each batch holds the most urgent request, so one
    request waits for at most as many batches as there were requests ahead of it. Nobody joins a
    batch that would then be too late for one of its members.
    """

    def __init__(
        self, max_batch_size: int, sweep: Iterable[Sample] = (), max_batch_bytes: int = 1 << 28
    ) -> None:
        self._max_rows = max_batch_size
        self._max_bytes = max_batch_bytes
        self.cost = CostModel(sweep)
        self._last: Batch | None = None

    @property
    def most_rows(self) -> int:
        """See `BatchPolicy.most_rows`."""
        return self._max_rows

    def form(self, queue: Queue, now: float) -> Formation | Hold:
        """See `BatchPolicy.form`. Looks at no more requests than one batch holds, or `MAX_REACH`
        shorter and as many longer ones where lengths differ."""
        anchor = queue.most_urgent()
        last = self._last
        if last is not None and len(last.requests) >= COMPANY:
            due_s = last.dispatched_s + PACE_S
            if now < due_s and queue.rows < min(PLENTY, self._max_rows):
                return Hold(due_s)
        curve = self.cost.curve
        if curve is None or not queue.lengths_differ(anchor.key):
            return self._by_urgency(queue, anchor, curve, now)
        near, at = queue.neighbours(anchor, min(self._max_rows - 1, MAX_REACH))
        return self._by_length(near, at, curve, now)

    def expected_duration_s(self, batch: Batch) -> float | None:
        """What the cost model says of its rows and padded length."""
        curve = self.cost.curve
        return None if curve is None else curve.at(batch.rows, batch.length)

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Take the batch into the cost model."""
        self._last = batch
        self.cost.observe(batch.rows, batch.length, duration_s)

    def _by_urgency(
        self, queue: Queue, anchor: Request, curve: Curve | None, now: float
    ) -> Formation:
        """Nobody pads anybody: in order of urgency, as many as make the batch worth it."""
        members: list[Request] = []
        best: list[float] = []
        rows = 0
        row_nbytes = 0.0
        work_s = 0.0
        ended = False
        deadline_s = math.inf
        margin = min(MAX_MARGIN, self.cost.margin)
        for request in queue.group(anchor.key):
            rows += request.rows
            row_nbytes = max(row_nbytes, request.nbytes / request.rows)
            if members and (rows > self._max_rows or rows * row_nbytes > self._max_bytes):
                ended = True
                break
            deadline_s = min(deadline_s, request.deadline_s)
            if (
                members
                and curve is not None
                and deadline_s < math.inf
                and now + margin * curve.at(rows, request.length) > deadline_s
            ):
                break
            members.append(request)
            if curve is not None:
                work_s += curve.at(request.rows, request.length)
                best.append(work_s / curve.at(rows, request.length))
            if rows == self._max_rows:
                ended = True
                break
        count = len(members)
        if best:
            enough = WORTHWHILE * max(best)
            count = 1 + next(i for i, value in enumerate(best) if value >= enough)
        taken = sum(request.rows for request in members[:count])
        if count < len(members):
            return Formation(members[:count], taken, DispatchReason.BEST_SIZE, complete=False)
        reason = DispatchReason.FULL if ended else DispatchReason.IMMEDIATE
        return Formation(members, taken, reason, complete=ended)

    def _by_length(self, near: list[Request], at: int, curve: Curve, now: float) -> Formation:
        """The window of neighbours around `near[at]` with the most work per second.

        O(n^2) in the number of windows, each one multiplication or two; n is bounded by the batch
        size, so the decision stays a small part of the batch that it decides.
        """
        rows = [0, *accumulate(request.rows for request in near)]
        work = [0.0, *accumulate(curve.at(request.rows, request.length) for request in near)]
        most_rows, most_bytes = self._max_rows, self._max_bytes
        best, first, end = 0.0, at, at + 1
        base, row, element, pair = curve.base, curve.row, curve.element, curve.pair
        margin = min(MAX_MARGIN, self.cost.margin)
        soonest_s = math.inf
        for last in range(at, len(near)):
            soonest_s = deadline_s = min(soonest_s, near[last].deadline_s)
            length = near[last].length
            per_row = row + length * (element + length * pair)
            to_rows, to_work = rows[last + 1], work[last + 1]
            # Ascending by length, so the last one is what everybody is padded to.
            row_nbytes = near[last].nbytes / near[last].rows
            for start in range(at, -1, -1):
                count = to_rows - rows[start]
                if (count > most_rows or count * row_nbytes > most_bytes) and start < last:
                    break
                duration_s = base + count * per_row
                deadline_s = min(deadline_s, near[start].deadline_s)
                if now + margin * duration_s > deadline_s and start < last:
                    break
                rate = (to_work - work[start]) / duration_s
                if rate > best:
                    best, first, end = rate, start, last + 1
        taken = rows[end] - rows[first]
        return Formation(
            near[first:end], taken, DispatchReason.BEST_WINDOW, complete=taken == most_rows
        )

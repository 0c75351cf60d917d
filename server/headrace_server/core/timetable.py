"""What batches of one length cost, by rows: a curve written out, and the questions asked of it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from headrace_server.core.cost import Curve
from headrace_server.core.request import Request

WORTHWHILE = 0.97
"""A smaller batch is taken when it does at least this share of the best one's work per second:
where batching gains next to nothing, nobody waits for it."""


WRITTEN = 1024
"""Rows up to which a curve is written out. Its steps have ended by then (`CostModel.MOST_STEPS`):
beyond, durations rise by the row, so that what is asked of them is found by bisection. A table of
65,536 rows would take 10 ms to write, after every fit and for every length."""


class Timetable:
    """Durations in seconds of batches of 0 to `most_rows` rows, all padded to one length.

    Costs one evaluation of the curve per row to write out, so it is kept as long as the curve is.
    """

    __slots__ = ("_best", "_curve", "_durations", "_length", "_most_rows", "_row_s", "_written")

    def __init__(self, curve: Curve, length: int, most_rows: int) -> None:
        self._curve = curve
        self._length = length
        self._most_rows = most_rows
        self._written = min(most_rows, WRITTEN)
        self._durations = [0.0, *curve.upto(self._written, length)]
        self._row_s = self._durations[1]
        self._best: list[float] = []

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch."""
        return self._most_rows

    def duration_s(self, rows: int) -> float:
        """How long a batch of that many rows takes; beyond `most_rows`, in proportion."""
        if rows <= self._written:
            return self._durations[rows]
        if rows <= self._most_rows:
            return self._curve.at(rows, self._length)
        return self.duration_s(self._most_rows) * rows / self._most_rows

    def work_s(self, requests: Sequence[Request], rows: int) -> float:
        """Seconds that these requests, of so many rows in all, would take one by one."""
        if rows == len(requests):
            return rows * self._row_s
        return sum(self.duration_s(request.rows) for request in requests)

    def saved_s(self, rows: int) -> float:
        """What two batches of so many rows each save by being one, in seconds."""
        return 2 * self.duration_s(rows) - self.duration_s(2 * rows)

    def more_s(self, rows: int, most: int) -> float:
        """What each further row adds to a batch of `rows`, in seconds, if it grows to `most`."""
        return (self.duration_s(most) - self.duration_s(rows)) / (most - rows)

    def rows_within(self, seconds: float) -> int:
        """The largest batch that takes no longer, 0 to `most_rows` rows."""
        if seconds < 0:
            return 0
        rows = bisect_right(self._durations, seconds) - 1
        if rows < self._written:
            return rows
        beyond = range(self._written + 1, self._most_rows + 1)
        return rows + bisect_right(beyond, seconds, key=self.duration_s)

    def rate(self, rows: int, request_rows: int) -> float:
        """Work per second of a batch made of requests of `request_rows` rows: the seconds that
        they would take one by one, over the seconds that they take together."""
        alone_s = self.duration_s(request_rows) * rows / request_rows
        return alone_s / self.duration_s(rows) if rows else 0.0

    def enough(self, rows: int) -> int:
        """The smallest batch of requests of one row that is `WORTHWHILE` next to the best of all
        up to `rows` rows."""
        best = self._best_rates()[min(rows, self._written)]
        if rows > self._written:
            best = max(best, self.rate(rows, 1))
        return max(1, self.rows_for(WORTHWHILE * best))

    def quicker_alone(self, count: int, load: float) -> bool:
        """Whether so many requests of one row are answered earlier, on the mean, one after another
        than together, at this load (work per second that arrives for one worker).

        One after another they end after `(count + 1) / 2` rows on the mean. But the worker is busy
        for the work longer that a batch would have saved, and whoever comes until the queue has
        run empty, `count * load / (1 - load)` requests (M/G/1), is answered as much later. So
        where nothing else comes a batch of two must save a quarter of its work, and at a load of
        1 all that it saves is worth it.
        """
        mean_rows = (1 - load) * (count + 1) / 2 + load * count
        return load < 1 and self.duration_s(count) > mean_rows * self._row_s

    def rows_for(self, rate: float) -> int:
        """The smallest batch of requests of one row that does so much work per second; one row
        more than the largest batch where none does."""
        # The first of up to so many rows that reaches a rate is the first that does so itself.
        rows = bisect_left(self._best_rates(), rate)
        if rows <= self._written:
            return rows
        beyond = range(rows, self._most_rows + 1)
        return rows + bisect_left(beyond, rate, key=lambda r: self.rate(r, 1))

    def _best_rates(self) -> list[float]:
        """The most work per second of batches of up to 0, 1, 2, ... rows, as far as written."""
        if not self._best:
            # A loop: `accumulate` with `max` takes three times as long, and there is one of these
            # in the middle of every decision that follows a fit.
            row_s, best = self._row_s, 0.0
            self._best = [best]
            for rows, duration_s in enumerate(self._durations[1:], 1):
                rate = rows * row_s / duration_s
                if rate > best:
                    best = rate
                self._best.append(best)
        return self._best

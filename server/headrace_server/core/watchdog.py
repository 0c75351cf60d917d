"""When a batch that is not answered counts as a hang: a pure rule on what batches should take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headrace_server.core.cost import Sample
from headrace_server.core.request import Batch

FACTOR = 10.0
"""Times its 95th percentile that a batch may take. What slows a healthy worker for a moment stays
below: a core shared with several others, a throttled clock, a device that other workers use too.
What stays slower for good is learned as drift within a few batches."""

LEAST_S = 2.0
"""However short the batch should be. Longer than what stops a healthy process that fits into
memory: a garbage collection, a page read from disk again, a container's used-up share of the CPU.
Shorter than it takes to start a worker, so that waiting less would gain little."""

UNKNOWN_S = 60.0
"""Where nothing is known of such batches: as long as hardly anybody waits for one answer."""

TRUSTED = 8
"""Answered batches from which on those that were not timed at load time are believed."""

MOST_DOUBLINGS = 5

LATE_S = 0.5
"""A wake-up later than this says that the front stood still itself, and the workers perhaps with
it (a suspended virtual machine, a paused container): such a moment convicts nobody."""


class Watchdog:
    """How long each batch may run before its worker counts as hung.

    A batch is known where it has no more rows, and is no longer, than those that were timed or
    answered; without timed batches also: where it has no more bytes. A false alarm must not
    repeat itself for ever: with every alarm the patience doubles for batches of as many rows,
    until one of them is answered.

    Args:
        sweep: batches that were timed when the model was loaded.
        timeout_s: takes the place of all that is learned, for models whose durations depend on
            what no shape shows.
    """

    def __init__(self, sweep: Iterable[Sample] = (), timeout_s: float | None = None) -> None:
        timed = [(rows, length) for rows, length, duration_s in sweep if duration_s > 0]
        self._timed = bool(timed)
        self._timeout_s = timeout_s
        self._most_rows = max((rows for rows, _ in timed), default=0)
        self._longest = max((length for _, length in timed), default=0)
        self._most_nbytes = 0
        self._answered = 0
        self._alarms: Counter[int] = Counter()

    def patience_s(self, batch: Batch, upper_s: float | None) -> float:
        """Seconds that the batch may run; `upper_s` is the 95th percentile of what it should."""
        if self._timeout_s is not None:
            return self._timeout_s
        patience_s = LEAST_S if upper_s is None else max(LEAST_S, FACTOR * upper_s)
        if upper_s is None or not self._knows(batch):
            patience_s = max(UNKNOWN_S, patience_s)
        if self._alarms:
            patience_s *= 2.0 ** min(self._alarms[batch.rows], MOST_DOUBLINGS)
        return patience_s

    def answered(self, batch: Batch) -> None:
        """The batch took what it took, and that was not for ever."""
        self._most_rows = max(self._most_rows, batch.rows)
        self._longest = max(self._longest, batch.length)
        if not self._timed:
            self._answered += 1
            self._most_nbytes = max(self._most_nbytes, batch.nbytes)
        if self._alarms:
            del self._alarms[batch.rows]

    def hung(self, batch: Batch) -> None:
        """The batch was given up."""
        self._alarms[batch.rows] += 1

    def _knows(self, batch: Batch) -> bool:
        if batch.rows > self._most_rows or batch.length > self._longest:
            return False
        return self._timed or (self._answered >= TRUSTED and batch.nbytes <= self._most_nbytes)

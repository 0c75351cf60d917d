"""Plays a queue forward: how many of those who wait would be lost after the next batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from headrace_server.core.request import Request
from headrace_server.core.timetable import Timetable

LOOKAHEAD = 8
"""Batches that are played at most: what lies further ahead depends on arrivals more than on this
decision, and a decision must stay short with thousands queued."""

MAX_TURNS = 24
"""Batches and losses that are played at most: among thousands who are all too late, two
dozen tell the two first steps apart."""

TAIL = 2
"""Batches that are played beyond those who wait now: what this decision leaves behind delays
those who are yet to come. Without them misses rise by a tenth; with more they stay the same."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of the time to come, for requests of one length.

    Args:
        now: the moment of the decision.
        times: what batches cost.
        margin: factor between a planned duration and the one that deadlines are held against.
        arriving: requests that are expected to arrive per second.
        patience_s: how long after its arrival each of those is due.
        enough: the rows below which a batch cut short is not run, and its head is lost.
    """

    now: float
    times: Timetable
    margin: float
    arriving: float
    patience_s: float
    enough: int

    def losses(
        self,
        waiting: Sequence[Request],
        first: int,
        free_s: Sequence[float],
        mean_rows: float,
        most: int = MAX_TURNS,
    ) -> int:
        """How many of `waiting[first:]` and of those yet to come would miss their deadlines, `most`
        at most: then the play ends.

        Whichever worker is free first takes as many as the deadline of the most urgent one
        allows; where that is too few to keep up, the most urgent one is lost. Those who are less
        urgent in priority than `waiting[0]` do not count. The rule is the policy's own, so that
        comparing two first steps by it improves on the policy (a rollout: Bertsekas, 1997).
        """
        now, times, margin, arriving = self.now, self.times, self.margin, self.arriving
        free = list(free_s)
        heapify(free)
        count = len(waiting)
        priority = waiting[0].priority
        lost = batches = 0
        tail = TAIL
        at = first
        for _ in range(MAX_TURNS):
            start_s = free[0]
            come = count + int((start_s - now) * arriving)
            if at >= count:
                tail -= 1
                if tail < 0 or arriving <= 0:
                    break
                come_s = now + (at + 1 - count) / arriving
                due_s = come_s + self.patience_s
                if at >= come:  # the worker waits for the next one
                    come = at + 1
                    start_s = come_s
            else:
                due_s = waiting[at].deadline_s
            rows = times.rows_within((due_s - start_s) / margin)
            ready = (come - at) * mean_rows
            if rows >= mean_rows and (rows >= ready or rows >= self.enough):
                rows = int(min(rows, ready))
                heapreplace(free, start_s + times.duration_s(rows))
                at += max(1, int(rows / mean_rows))
                batches += 1
                if batches >= LOOKAHEAD:
                    break
            else:
                lost += at >= count or waiting[at].priority <= priority
                if lost == most:
                    break
                at += 1
        return lost

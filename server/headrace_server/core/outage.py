"""When a model without a living worker stops to let requests wait: a pure rule on time."""

from __future__ import annotations

import math

LEAST_S = 30.0
"""However fast the model loads. With the back-off of restarts, some seven starts fit into it: so
many poisonous requests in a row may each take a worker along before their neighbours suffer."""

LOADS = 3.0
"""Times that loading the model took: a worker that is started again needs one."""

HEALTHY_S = 30.0
"""A worker that lived so long ends a series of losses even if nobody asked it anything."""


class Outage:
    """Since when losses follow one another without an answer in between, and when that is enough.

    While a worker lives there is no outage, whatever came before: requests are let in and tried.
    If that one is lost too before it answered, the old series goes on.
    """

    def __init__(self, load_s: float = 0.0) -> None:
        self.patience_s = max(LEAST_S, LOADS * load_s)
        self.due_s = math.inf
        """From when on nobody waits any more; infinite while a worker lives."""
        self._since_s = math.inf
        self._alive_from_s = math.inf

    def first_worker_ready(self, now: float) -> None:
        """There is a worker again."""
        self._alive_from_s = now
        self.due_s = math.inf

    def last_worker_lost(self, now: float) -> None:
        """There is none any more."""
        if self._since_s == math.inf or now - self._alive_from_s >= HEALTHY_S:
            self._since_s = now
        self.due_s = self._since_s + self.patience_s

    def answered(self) -> None:
        """A worker answered a batch."""
        self._since_s = math.inf

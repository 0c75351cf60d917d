"""Which expectations of durations were lately borne out: only those are trusted to refuse."""

from __future__ import annotations

import math
from collections.abc import Hashable

from headrace_server.core.request import Batch, Request, cost_key

PROBE_S = 1.0
TOO_FAST = 1.5
"""Without a batch for `PROBE_S` that took what was expected of it, or more, what is known of
durations is not trusted to refuse anybody: a request that seems hopeless is tried all the same.
Else one bad estimate could refuse every request there is, and nothing would ever correct it. Only
batches with requests of the same key and about the same length confirm anything. A batch that is
done `TOO_FAST` times as fast confirms nothing: the next one is tried at once, not a `PROBE_S`
later, until the cost model has learned better."""

MOST_LIKES = 1024
"""Keys and lengths whose last confirmation is remembered."""


class Confirmed:
    """When requests like a given one last took what was expected."""

    def __init__(self) -> None:
        self._done_s: dict[Hashable, float] = {}

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Take a completed batch, which ran so long."""
        if batch.expected_s is not None and duration_s * TOO_FAST <= batch.expected_s:
            return
        if len(self._done_s) > MOST_LIKES:
            self._done_s.clear()
        done_s = batch.started_s + duration_s
        # Without lengths all members are alike.
        for request in batch.requests if batch.length else batch.requests[:1]:
            self._done_s[_like(request)] = done_s

    def lately(self, request: Request, now: float) -> bool:
        """Whether one like this was seen to take what was expected within the last `PROBE_S`."""
        return now - self._done_s.get(_like(request), -math.inf) <= PROBE_S


def _like(request: Request) -> Hashable:
    """What requests share that confirm what is known of each other's durations."""
    return cost_key(request), request.length.bit_length()

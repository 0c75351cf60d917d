"""Who sends requests to a simulated server: a story told beforehand, or callers who wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from headrace_server.core.request import Request

NBYTES = 4


class Callers(Protocol):
    """Who sends requests to a simulated server."""

    @property
    def next_s(self) -> float:
        """The moment of the next request: infinite while none is on its way."""

    def send(self) -> Request:
        """The request of that moment."""

    def answered(self, request: Request, now: float) -> None:
        """It has its answer."""


class OpenLoop:
    """Requests that come when they come, whatever becomes of others.

    Args:
        arrivals: moments in seconds, ascending; one at least.
        objective_s: every request's deadline, from its arrival; infinite for none.
        lengths: of each request, where they differ.
        keys: the batch key of each request, where they differ.
    """

    def __init__(
        self,
        arrivals: Sequence[float],
        objective_s: float,
        lengths: Sequence[int] | None = None,
        keys: Sequence[Hashable] | None = None,
    ) -> None:
        self.next_s = arrivals[0]
        self._upcoming = iter(arrivals[1:])
        self._objective_s = objective_s
        self._lengths = lengths
        self._keys = keys
        self._number = 0

    def send(self) -> Request:
        """See `Callers.send`."""
        now, number = self.next_s, self._number
        self.next_s = next(self._upcoming, math.inf)
        self._number += 1
        key = self._keys[number] if self._keys else None
        length = self._lengths[number] if self._lengths else 0
        return Request(number, key, 1, NBYTES, now, now + self._objective_s, length=length)

    def answered(self, request: Request, now: float) -> None:
        """See `Callers.answered`."""


class InAHurry(OpenLoop):
    """Some requests of an open loop have less time than the others.

    Args:
        arrivals: as for `OpenLoop`.
        objectives_s: how long after its arrival each request is due.

    `on_time` counts those that were answered in time, by their objective.
    """

    def __init__(self, arrivals: Sequence[float], objectives_s: Sequence[float]) -> None:
        super().__init__(arrivals, math.inf)
        self._objectives_s = objectives_s
        self.on_time = dict.fromkeys(objectives_s, 0)

    def send(self) -> Request:
        """See `Callers.send`."""
        request = super().send()
        request.deadline_s = request.arrival_s + self._objectives_s[request.id]
        return request

    def answered(self, request: Request, now: float) -> None:
        """See `Callers.answered`."""
        if now <= request.deadline_s:
            self.on_time[self._objectives_s[request.id]] += 1


class ClosedLoop:
    """So many callers in one process, each of whom sends the next request after its answer. They
    wait as long as it takes: whoever is refused does not come again.

    Args:
        length: draws that of the next request.
        turn_s: what the process takes to read one answer and send one request; one at a time, so
            that those of one batch come back one after the other.
        end_s: the moment from which on nobody sends.

    `latencies_s` are those of the requests that were answered by `end_s`, in seconds.
    """

    def __init__(
        self, callers: int, length: Callable[[], int], *, turn_s: float, end_s: float
    ) -> None:
        self.latencies_s: list[float] = []
        self._length = length
        self._turn_s = turn_s
        self._end_s = end_s
        self._number = 0
        self._due_s: deque[float] = deque()
        self._busy_until_s = 0.0
        for _ in range(callers):
            self._take_turn(0.0)

    @property
    def next_s(self) -> float:
        """See `Callers`."""
        return self._due_s[0] if self._due_s else math.inf

    def send(self) -> Request:
        """See `Callers.send`."""
        now, number = self._due_s.popleft(), self._number
        self._number += 1
        return Request(number, None, 1, NBYTES, now, length=self._length())

    def answered(self, request: Request, now: float) -> None:
        """See `Callers.answered`."""
        if now <= self._end_s:
            self.latencies_s.append(now - request.arrival_s)
        self._take_turn(now)

    def _take_turn(self, now: float) -> None:
        self._busy_until_s = max(now, self._busy_until_s) + self._turn_s
        if self._busy_until_s < self._end_s:
            self._due_s.append(self._busy_until_s)

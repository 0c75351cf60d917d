"""The bounded queue of one model: order of urgency, groups by batch key, deadlines."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from headrace_server.core.request import Request

DELAYED_LEVEL = 2**64
"""Behind every real priority level (they end at 2^64 - 1): where late, delayed requests wait."""

_Level = OrderedDict[int, Request]


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of one model's queue. 0 means no bound (per level only).

    `max_requests_by_level` bounds single priority levels as Triton's `max_queue_size` does.
    """

    max_requests: int = 16_384
    max_bytes: int = 1 << 30
    max_requests_by_level: Mapping[int, int] = field(default_factory=dict)
    default_max_requests_by_level: int = 0

    def __post_init__(self) -> None:
        if self.max_requests < 1 or self.max_bytes < 1:
            raise ValueError(
                "queue limits must be at least 1, got "
                f"max_requests={self.max_requests}, max_bytes={self.max_bytes}"
            )


class Queue:
    """Requests that wait, most urgent first: by priority level, then by arrival.

    Every operation is O(1) but for finding a place by length or by deadline (O(log n); moving the
    pointers behind it is a memory move), and changes that touch a new priority level (O(number of
    levels in use)). OrderedDict rather
    than dict: it removes its first entry in O(1), where a dict rescans the holes left there.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._levels: dict[int, _Level] = {}
        self._groups: dict[Hashable, dict[int, _Level]] = {}
        self._by_length: dict[Hashable, list[tuple[int, int, Request]]] = {}
        self._level_of: dict[int, int] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self.rows = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._level_of)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._level_of

    def __iter__(self) -> Iterator[Request]:
        for level in sorted(self._levels):
            yield from self._levels[level].values()

    def has_room_for(self, request: Request) -> bool:
        """Whether one more request like this stays within every bound.

        A request larger than `max_bytes` is let in when it would wait alone: the bound is on
        memory held by waiting, not on the size of a message.
        """
        limits = self._limits
        if len(self) >= limits.max_requests:
            return False
        if self._level_of and self.nbytes + request.nbytes > limits.max_bytes:
            return False
        bound = limits.max_requests_by_level.get(
            request.priority, limits.default_max_requests_by_level
        )
        if bound == 0:
            return True
        level = self._levels.get(request.priority)
        return level is None or len(level) < bound

    def push(self, request: Request, *, first: bool = False) -> None:
        """Add a request at the end of its level, or at its head (work given back by a worker)."""
        self._insert(request, request.priority, first=first)
        if request.deadline_s != float("inf"):
            heapq.heappush(self._deadlines, (request.deadline_s, request.id, request))
            # Entries of requests that left early stay in the heap until their deadline; with
            # long deadlines and high rates they would outnumber the queue a hundredfold.
            if len(self._deadlines) > 64 + 2 * len(self):
                self._deadlines = [e for e in self._deadlines if self._awaits_deadline(e)]
                heapq.heapify(self._deadlines)

    def remove(self, request: Request) -> None:
        """Take a waiting request out, wherever it stands."""
        level = self._level_of.pop(request.id)
        waiting = self._levels[level]
        del waiting[request.id]
        if not waiting:
            del self._levels[level]
        group = self._groups[request.key]
        members = group[level]
        del members[request.id]
        if not members:
            del group[level]
            if not group:
                del self._groups[request.key]
        ordered = self._by_length[request.key]
        del ordered[bisect_left(ordered, (request.length, request.id))]
        if not ordered:
            del self._by_length[request.key]
        self.rows -= request.rows
        self.nbytes -= request.nbytes

    def demote(self, request: Request) -> None:
        """Put a waiting request behind all others, for good."""
        self.remove(request)
        self._insert(request, DELAYED_LEVEL)

    def most_urgent(self) -> Request:
        """The request that anchors the next batch. The queue must not be empty."""
        waiting = self._levels[min(self._levels)]
        return next(iter(waiting.values()))

    def group(self, key: Hashable) -> Iterator[Request]:
        """The requests that may ride with one of this key, most urgent first."""
        group = self._groups.get(key, {})
        for level in sorted(group):
            yield from group[level].values()

    def lengths_differ(self, key: Hashable) -> bool:
        """Whether the requests of this key are of more than one length."""
        ordered = self._by_length[key]
        return ordered[0][0] != ordered[-1][0]

    def neighbours(self, request: Request, reach: int) -> tuple[list[Request], int]:
        """The requests of this one's key that are closest to it in length.

        Returns:
            Up to `reach` shorter or equal ones, the request itself, up to `reach` longer or equal
            ones, ascending by length and then by arrival; and the position of the request.
        """
        ordered = self._by_length[request.key]
        at = bisect_left(ordered, (request.length, request.id))
        first = max(0, at - reach)
        return [entry[2] for entry in ordered[first : at + reach + 1]], at - first

    def heads(self) -> Iterator[Request]:
        """The most urgent request of every group, in no particular order."""
        for group in self._groups.values():
            yield next(iter(group[min(group)].values()))

    def expire(self, now: float) -> list[Request]:
        """Requests whose deadline has come, in order of deadline; each is named once."""
        late: list[Request] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = self._deadlines[0][2]
            awaits = self._awaits_deadline(heapq.heappop(self._deadlines))
            # A request that a lost worker gave back may be watched twice; equal entries adjoin.
            if awaits and not (late and late[-1] is request):
                late.append(request)
        return late

    def next_deadline_s(self) -> float | None:
        """The first moment at which `expire` may name a request; None when there is none."""
        while self._deadlines and not self._awaits_deadline(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def check_invariants(self) -> None:
        """Raise AssertionError when the books disagree."""
        waiting = list(self)
        assert len(waiting) == len(self._level_of), "levels and index disagree"
        assert self.rows == sum(r.rows for r in waiting), "rows are miscounted"
        assert self.nbytes == sum(r.nbytes for r in waiting), "bytes are miscounted"
        grouped = [r for key in self._groups for r in self.group(key)]
        assert {r.id for r in grouped} == set(self._level_of), "groups and index disagree"
        ordered = [e[2] for entries in self._by_length.values() for e in entries]
        assert {r.id for r in ordered} == set(self._level_of), "lengths and index disagree"
        assert all(e == sorted(e, key=lambda t: t[:2]) for e in self._by_length.values())
        assert self._by_length.keys() == self._groups.keys(), "lengths of an empty group were kept"
        assert all(self._levels.values()), "an empty level was kept"
        assert all(m for g in self._groups.values() for m in g.values()), "an empty group was kept"
        watched = {entry[1] for entry in self._deadlines}
        for request in waiting:
            timed = request.deadline_s != float("inf")
            demoted = self._level_of[request.id] == DELAYED_LEVEL
            assert not timed or demoted or request.id in watched, "a deadline is not watched"

    def _insert(self, request: Request, level: int, *, first: bool = False) -> None:
        waiting = self._levels.setdefault(level, OrderedDict())
        members = self._groups.setdefault(request.key, {}).setdefault(level, OrderedDict())
        for ordered in (waiting, members):
            ordered[request.id] = request
            if first:
                ordered.move_to_end(request.id, last=False)
        insort(self._by_length.setdefault(request.key, []), (request.length, request.id, request))
        self._level_of[request.id] = level
        self.rows += request.rows
        self.nbytes += request.nbytes

    def _awaits_deadline(self, entry: tuple[float, int, Request]) -> bool:
        return self._level_of.get(entry[1], DELAYED_LEVEL) != DELAYED_LEVEL

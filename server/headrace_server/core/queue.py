"""The bounded queue of one model: order of urgency, groups by batch key, deadlines."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from headrace_server.core.request import Request

DELAYED_LEVEL = 2**64
"""Behind every real priority level (they end at 2^64 - 1): where late, delayed requests wait."""

Urgency = tuple[int, float]
"""A level, lower ones first, and within it a moment, earlier ones first."""

_Place = tuple[int, float, int]
"""An urgency, and the id of the request that has it: unique, and arrivals of one moment keep
their order."""


def by_level_and_arrival(request: Request) -> Urgency:
    """Strict priority levels, first come first served within each."""
    return request.priority, request.arrival_s


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


class Group:
    """The waiting requests of one batch key: those that may ride together.

    `requests` is in order of urgency and to be read only. The order by length is kept from the
    first request on that differs from the others in length, until the group is empty. No row has
    more bytes than `widest_row`, which does not fall before the group is empty either.
    """

    __slots__ = ("_by_length", "_places", "requests", "rows", "widest_row")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.rows = 0
        self.widest_row = 0.0
        self._places: list[_Place] = []
        self._by_length: list[tuple[int, int, Request]] | None = None

    @property
    def head(self) -> Request:
        """The most urgent one."""
        return self.requests[0]

    @property
    def lengths_differ(self) -> bool:
        """Whether the requests are of more than one length."""
        ordered = self._by_length
        return ordered is not None and ordered[0][0] != ordered[-1][0]

    def neighbours(self, reach: int) -> tuple[list[Request], int]:
        """The requests that are closest to the head in length. Only where lengths differ.

        Returns:
            Up to `reach` shorter or equal ones, the head, up to `reach` longer or equal ones,
            ascending by length and then by arrival; and the position of the head.
        """
        assert self._by_length is not None, "all are of one length"
        ordered = self._by_length
        at = bisect_left(ordered, (self.head.length, self.head.id))
        first = max(0, at - reach)
        return [entry[2] for entry in ordered[first : at + reach + 1]], at - first

    def _add(self, place: _Place, request: Request) -> None:
        at = bisect_left(self._places, place)
        self._places.insert(at, place)
        self.requests.insert(at, request)
        self.rows += request.rows
        if request.nbytes > self.widest_row * request.rows:
            self.widest_row = request.nbytes / request.rows
        if self._by_length is not None:
            insort(self._by_length, (request.length, request.id, request))
        elif request.length != self.requests[-1 if at == 0 else 0].length:
            self._by_length = sorted((r.length, r.id, r) for r in self.requests)

    def _take(self, places: Sequence[_Place], taken: Sequence[Request]) -> None:
        """Drop these; a run of neighbours, in either order, goes at once."""
        count = len(taken)
        if self._places[:count] == places:
            del self._places[:count], self.requests[:count]
        else:
            for place in places:
                at = bisect_left(self._places, place)
                del self._places[at], self.requests[at]
        self.rows -= sum(request.rows for request in taken)
        ordered = self._by_length
        if ordered is None:
            return
        at = bisect_left(ordered, (taken[0].length, taken[0].id))
        if [entry[2] for entry in ordered[at : at + count]] == taken:
            del ordered[at : at + count]
        else:
            for request in taken:
                del ordered[bisect_left(ordered, (request.length, request.id))]

    def check_invariants(self) -> None:
        """Raise AssertionError when the books disagree."""
        assert self.requests, "an empty group was kept"
        assert self._places == sorted(self._places), "the order of urgency is broken"
        assert [place[2] for place in self._places] == [r.id for r in self.requests]
        assert self.rows == sum(r.rows for r in self.requests), "rows are miscounted"
        assert self.widest_row >= max(r.nbytes / r.rows for r in self.requests)
        if self._by_length is not None:
            by_length = sorted((r.length, r.id, r) for r in self.requests)
            assert self._by_length == by_length, "the order by length is broken"
        else:
            assert len({r.length for r in self.requests}) == 1, "differing lengths go unnoticed"


class Queue:
    """Requests that wait, most urgent first, as `urgency` has it: lower ones first, equal ones by
    id. A request's urgency never changes while it waits.

    Finding a place is O(log n); moving the pointers behind it is a memory move. A batch that
    leaves from the head of its group, or as a run of neighbours in length, leaves at once. What
    has left stays in the heaps of places and deadlines until it surfaces or they are rebuilt.
    """

    def __init__(
        self, limits: QueueLimits, urgency: Callable[[Request], Urgency] = by_level_and_arrival
    ) -> None:
        self._limits = limits
        self._urgency = urgency
        self._waiting: dict[int, tuple[_Place, Request]] = {}
        self._groups: dict[Hashable, Group] = {}
        self._order: list[_Place] = []
        self._deadlines: list[tuple[float, int, Request]] = []
        self._levels: Counter[int] = Counter()
        self.rows = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def __iter__(self) -> Iterator[Request]:
        for _, request in sorted(self._waiting.values(), key=lambda entry: entry[0]):
            yield request

    def has_room_for(self, request: Request) -> bool:
        """Whether one more request like this stays within every bound.

        A request larger than `max_bytes` is let in when it would wait alone: the bound is on
        memory held by waiting, not on the size of a message.
        """
        limits = self._limits
        if len(self) >= limits.max_requests:
            return False
        if self._waiting and self.nbytes + request.nbytes > limits.max_bytes:
            return False
        bound = limits.max_requests_by_level.get(
            request.priority, limits.default_max_requests_by_level
        )
        return bound == 0 or self._levels[self._urgency(request)[0]] < bound

    def push(self, request: Request) -> None:
        """Add a request at its place."""
        self._insert(request, *self._urgency(request))
        if request.deadline_s != math.inf:
            heapq.heappush(self._deadlines, (request.deadline_s, request.id, request))
            # Entries of requests that left early stay in the heap until their deadline; with
            # long deadlines and high rates they would outnumber the queue a hundredfold.
            if len(self._deadlines) > 64 + 2 * len(self):
                self._deadlines = [e for e in self._deadlines if self._awaits_deadline(e)]
                heapq.heapify(self._deadlines)

    def remove(self, request: Request) -> None:
        """Take a waiting request out, wherever it stands."""
        self.remove_batch([request])

    def remove_batch(self, requests: Sequence[Request]) -> None:
        """Take waiting requests of one key out; at least one."""
        places = [self._waiting.pop(request.id)[0] for request in requests]
        key = requests[0].key
        group = self._groups[key]
        group._take(places, requests)
        if not group.requests:
            del self._groups[key]
        for (level, _, _), request in zip(places, requests, strict=True):
            self._levels[level] -= 1
            if not self._levels[level]:
                del self._levels[level]
            self.rows -= request.rows
            self.nbytes -= request.nbytes

    def demote(self, request: Request) -> None:
        """Put a waiting request behind all others, for good."""
        self.remove(request)
        self._insert(request, DELAYED_LEVEL, request.arrival_s)

    def most_urgent(self) -> Request:
        """The request that anchors the next batch. The queue must not be empty."""
        order = self._order
        while not self._waits_at(order[0]):
            heapq.heappop(order)
        return self._waiting[order[0][2]][1]

    def group(self, key: Hashable) -> Group:
        """The requests of this key; at least one must wait."""
        return self._groups[key]

    def groups(self) -> Iterator[Group]:
        """The requests by key, in no particular order."""
        return iter(self._groups.values())

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
        for group in self._groups.values():
            group.check_invariants()
        waiting = list(self)
        grouped = {r.id for group in self._groups.values() for r in group.requests}
        assert grouped == set(self._waiting), "groups and index disagree"
        assert self.rows == sum(r.rows for r in waiting), "rows are miscounted"
        assert self.nbytes == sum(r.nbytes for r in waiting), "bytes are miscounted"
        places = {place for place, _ in self._waiting.values()}
        assert self._levels == Counter(level for level, _, _ in places), "levels are miscounted"
        assert places <= set(self._order), "a place is lost"
        watched = {entry[1] for entry in self._deadlines}
        for request in waiting:
            timed = request.deadline_s != math.inf
            demoted = self._waiting[request.id][0][0] == DELAYED_LEVEL
            assert not timed or demoted or request.id in watched, "a deadline is not watched"

    def _insert(self, request: Request, level: int, moment_s: float) -> None:
        place = (level, moment_s, request.id)
        self._waiting[request.id] = place, request
        group = self._groups.get(request.key)
        if group is None:
            group = self._groups[request.key] = Group()
        group._add(place, request)
        heapq.heappush(self._order, place)
        if len(self._order) > 64 + 2 * len(self):
            self._order = [place for place in self._order if self._waits_at(place)]
            heapq.heapify(self._order)
        self._levels[level] += 1
        self.rows += request.rows
        self.nbytes += request.nbytes

    def _waits_at(self, place: _Place) -> bool:
        waiting = self._waiting.get(place[2])
        return waiting is not None and waiting[0] == place

    def _awaits_deadline(self, entry: tuple[float, int, Request]) -> bool:
        waiting = self._waiting.get(entry[1])
        return waiting is not None and waiting[0][0] != DELAYED_LEVEL

"""The bounded queue of one model: order of urgency, groups by batch key, deadlines."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from headrace_server.core.request import NOWHERE, Place, Request

Urgency = tuple[int, float]
"""A level, lower ones first, and within it a moment, earlier ones first."""

DELAYED = 1
"""Places are in ranks, two for each level: who is late and delayed stands in the odd one, behind
all others of his level and before all of the next (as Triton's delayed requests do)."""


def rank_of(level: int) -> int:
    """Where requests of this level stand who are not delayed."""
    return 2 * level


def is_delayed(place: Place) -> bool:
    """Whether that is a place of delayed requests."""
    return place[0] % 2 == DELAYED


_PLACE = attrgetter("place")


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

    @property
    def bounds_levels(self) -> bool:
        """Whether any level has a bound of its own."""
        return bool(self.max_requests_by_level or self.default_max_requests_by_level)


class Group:
    """The waiting requests of one batch key: those that may ride together.

    `requests` is in order of urgency and to be read only. The order by length is kept from the
    first request on that differs from the others in length, until the group is empty. No row has
    more bytes than `widest_row`, which does not fall before the group is empty either.
    """

    __slots__ = ("_by_length", "requests", "rows", "widest_row")

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.rows = 0
        self.widest_row = 0.0
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

    def _add(self, request: Request) -> None:
        requests = self.requests
        if self._by_length is not None:
            insort(self._by_length, (request.length, request.id, request))
        elif requests and request.length != requests[0].length:
            self._by_length = sorted((r.length, r.id, r) for r in (*requests, request))
        if not requests or requests[-1].place < request.place:
            requests.append(request)
        else:
            insort(requests, request, key=_PLACE)
        self.rows += request.rows
        if request.nbytes > self.widest_row * request.rows:
            self.widest_row = request.nbytes / request.rows

    def _take(self, taken: Sequence[Request], rows: int) -> None:
        """Drop these, of so many rows; a run of neighbours, in either order, goes at once."""
        count = len(taken)
        requests = self.requests
        if requests[:count] == taken:
            del requests[:count]
        else:
            for request in taken:
                del requests[bisect_left(requests, request.place, key=_PLACE)]
        self.rows -= rows
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
        places = [r.place for r in self.requests]
        assert places == sorted(places), "the order of urgency is broken"
        assert [place[2] for place in places] == [r.id for r in self.requests]
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

    Most requests arrive behind those who wait already, and leave from the head of their group: both
    cost the same however many there are, but for a memory move. Any other place is found in
    O(log n). A batch that is a run of neighbours in length leaves at once too. Of each group the
    head stands in a heap; what has left stays there, and among the deadlines, until it surfaces or
    they are rebuilt.
    """

    def __init__(
        self, limits: QueueLimits, urgency: Callable[[Request], Urgency] = by_level_and_arrival
    ) -> None:
        self._limits = limits
        self._urgency = urgency
        self._count = 0
        self._groups: dict[Hashable, Group] = {}
        self._heads: list[tuple[Place, Request]] = []
        self._deadlines: list[tuple[float, int, Request]] = []
        self._ranks: Counter[int] = Counter()
        self._levels_matter = limits.bounds_levels
        self.rows = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        waiting = (request for group in self._groups.values() for request in group.requests)
        return iter(sorted(waiting, key=_PLACE))

    def has_room_for(self, request: Request) -> bool:
        """Whether one more request like this stays within every bound.

        A request larger than `max_bytes` is let in when it would wait alone: the bound is on
        memory held by waiting, not on the size of a message.
        """
        limits = self._limits
        if self._count >= limits.max_requests:
            return False
        if self._count and self.nbytes + request.nbytes > limits.max_bytes:
            return False
        if not self._levels_matter:
            return True
        bound = limits.max_requests_by_level.get(
            request.priority, limits.default_max_requests_by_level
        )
        rank = rank_of(self._urgency(request)[0])
        return bound == 0 or self._ranks[rank] + self._ranks[rank + DELAYED] < bound

    def push(self, request: Request) -> None:
        """Add a request at its place."""
        self._insert(request, self._place_for(request))
        self._watch_deadline(request)

    def remove(self, request: Request) -> None:
        """Take a waiting request out, wherever it stands."""
        self.remove_batch([request])

    def remove_batch(self, requests: Sequence[Request]) -> None:
        """Take waiting requests of one key out; at least one."""
        rows = nbytes = 0
        for request in requests:
            rows += request.rows
            nbytes += request.nbytes
        self._count -= len(requests)
        self.rows -= rows
        self.nbytes -= nbytes
        key = requests[0].key
        group = self._groups[key]
        head = group.head
        group._take(requests, rows)
        if not group.requests:
            del self._groups[key]
        elif group.requests[0] is not head:
            self._note_head(group)
        if self._levels_matter:
            for request in requests:
                self._leave_rank(request.place[0])
        for request in requests:
            request.place = NOWHERE

    def demote(self, request: Request) -> None:
        """Put a waiting request behind all others of its level, for good."""
        self.remove(request)
        self._insert(request, self._place_for(request, delayed=True))

    def most_urgent(self) -> Request:
        """The request that anchors the next batch. The queue must not be empty."""
        heads = self._heads
        while heads[0][1].place is not heads[0][0]:
            heapq.heappop(heads)
        return heads[0][1]

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
            request = heapq.heappop(self._deadlines)[2]
            # A request that a lost worker gave back may be watched twice; equal entries adjoin.
            if _awaits_deadline(request) and not (late and late[-1] is request):
                late.append(request)
        return late

    def next_deadline_s(self) -> float:
        """The first moment at which `expire` may name a request; infinite when there is none."""
        deadlines = self._deadlines
        while deadlines and not _awaits_deadline(deadlines[0][2]):
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else math.inf

    def check_invariants(self) -> None:
        """Raise AssertionError when the books disagree."""
        for key, group in self._groups.items():
            group.check_invariants()
            assert all(r.key == key for r in group.requests), "a request is misfiled"
            assert (group.head.place, group.head) in self._heads, "a head is lost"
        waiting = list(self)
        assert self._count == len(waiting), "requests are miscounted"
        assert self.rows == sum(g.rows for g in self._groups.values()), "rows are miscounted"
        assert self.nbytes == sum(r.nbytes for r in waiting), "bytes are miscounted"
        if self._levels_matter:
            ranks = Counter(r.place[0] for r in waiting)
            assert self._ranks == ranks, "levels are miscounted"
        watched = {entry[1] for entry in self._deadlines}
        for request in waiting:
            timed = request.deadline_s != math.inf and _awaits_deadline(request)
            assert not timed or request.id in watched, "a deadline is not watched"

    def _place_for(self, request: Request, *, delayed: bool = False) -> Place:
        level, moment_s = self._urgency(request)
        if delayed:
            return rank_of(level) + DELAYED, request.arrival_s, request.id
        return rank_of(level), moment_s, request.id

    def _insert(self, request: Request, place: Place) -> None:
        request.place = place
        group = self._groups.get(request.key)
        if group is None:
            group = self._groups[request.key] = Group()
        group._add(request)
        if group.requests[0] is request:
            self._note_head(group)
        if self._levels_matter:
            self._ranks[place[0]] += 1
        self._count += 1
        self.rows += request.rows
        self.nbytes += request.nbytes

    def _watch_deadline(self, request: Request) -> None:
        if request.deadline_s != math.inf:
            heapq.heappush(self._deadlines, (request.deadline_s, request.id, request))
            # Entries of requests that left early stay in the heap until their deadline; with
            # long deadlines and high rates they would outnumber the queue a hundredfold.
            if len(self._deadlines) > 64 + 2 * self._count:
                self._deadlines = [e for e in self._deadlines if _awaits_deadline(e[2])]
                heapq.heapify(self._deadlines)

    def _empty(self) -> None:
        """Forget the order of those who wait; their deadlines stay watched."""
        self._groups.clear()
        self._heads.clear()
        self._count = self.rows = self.nbytes = 0

    def _leave_rank(self, rank: int) -> None:
        self._ranks[rank] -= 1
        if not self._ranks[rank]:
            del self._ranks[rank]  # callers choose levels, and there are 2^64 of them

    def _note_head(self, group: Group) -> None:
        head = group.head
        heapq.heappush(self._heads, (head.place, head))
        if len(self._heads) > 64 + 2 * len(self._groups):
            self._heads = [(g.head.place, g.head) for g in self._groups.values()]
            heapq.heapify(self._heads)


def _awaits_deadline(request: Request) -> bool:
    """Whether it waits, and is not delayed already."""
    return request.place is not NOWHERE and not is_delayed(request.place)

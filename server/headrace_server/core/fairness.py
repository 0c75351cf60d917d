"""A queue that several tenants share by weight, and that is an ordinary one while one uses it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from headrace_server.core.queue import DELAYED, Queue, QueueLimits, Urgency, is_delayed
from headrace_server.core.request import NOWHERE, Place, Request

_PLACE = attrgetter("place")


@dataclass(slots=True, eq=False)
class _Ahead:
    """A request that policies see: the place it would have among its tenant's own, where it begins
    in virtual time, and what it is charged."""

    request: Request
    place: Place
    start: float
    cost: float


@dataclass(slots=True, eq=False)
class _Share:
    """What one tenant has waiting, in its order of urgency: first what is `ahead`, then what is
    `behind`. In virtual time the last one ahead begins at `start`, and all of them end at
    `finish`."""

    weight: float = 1.0
    start: float = 0.0
    finish: float = 0.0
    count: int = 0
    nbytes: int = 0
    rows_ahead: int = 0
    behind: list[Request] = field(default_factory=list)
    ahead: dict[int, _Ahead] = field(default_factory=dict)

    def drop(self, request: Request) -> None:
        """Keep no books of this one any more."""
        self.count -= 1
        self.nbytes -= request.nbytes
        if self.ahead.pop(request.id, None) is not None:
            self.rows_ahead -= request.rows

    def last_first(self) -> Iterator[Request]:
        """All of it, the one whose turn is last first."""
        yield from reversed(self.behind)
        for entry in reversed(self.ahead.values()):
            yield entry.request


class FairQueue(Queue):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) of tenants over predicted work.

    While one tenant waits nothing differs from `Queue`. From the moment that a second one does,
    until nobody waits, each tenant has its own order of urgency, of which the first requests stand
    *ahead*, `rows_ahead` rows or the one that exceeds them. Policies see those alone, in the order
    of their start tags: a request begins, in virtual time, where the one before it of its tenant
    ends, and not before the batch that left last began; it ends by its work over its tenant's
    weight later. One that comes and is more urgent than some of those begins where the first of
    these did, and all of these later: tenants are fair to each other, and each as it is alone.

    So the head of the next batch belongs to the tenant that has had the least for its weight,
    others fill the batch up in the same order, and everybody pays for its own work.

    Bounds. While two tenants wait all the time, what each had of the device over its weight differs
    by no more than one request of each over its weight, and what was let ahead of each: nobody
    starves, whatever the others send. A tenant that had nothing waiting stands at the head of the
    next batch but for one request each of others like it. Where the queue is full, a newcomer
    takes the place of the last request of the tenant that has most of it for its weight, so a flood
    keeps nobody else out.

    Queues that bound single priority levels are Triton's, and know no tenants.

    Args:
        work_s: seconds that a request would take alone, more or less; above 0.
        rows_ahead: rows of each tenant among which policies may choose: two of the largest
            batches leave them their choice.
    """

    def __init__(
        self,
        limits: QueueLimits,
        urgency: Callable[[Request], Urgency],
        work_s: Callable[[Request], float],
        rows_ahead: int,
    ) -> None:
        super().__init__(limits, urgency)
        self._work_s = work_s
        self._rows_ahead = rows_ahead
        self._only = ""
        self._virtual = 0.0
        self._shares: dict[str, _Share] = {}

    @property
    def shared(self) -> bool:
        """Whether several tenants have come since it was empty."""
        return bool(self._shares)

    def __iter__(self) -> Iterator[Request]:
        yield from super().__iter__()
        for share in self._shares.values():
            yield from share.behind

    def push(self, request: Request) -> None:
        """See `Queue.push`."""
        if not self._shares:
            if request.tenant == self._only or not self._count or self._levels_matter:
                self._only = request.tenant
                super().push(request)
                return
            self._share_out()
        self._add(self._share_of(request), request, self._place_for(request))
        self._watch_deadline(request)

    def remove(self, request: Request) -> None:
        """See `Queue.remove`; what it was charged is given back."""
        if not self._shares:
            super().remove(request)
            return
        self._let_ahead(self._take_out(request))
        self._end_if_empty()

    def remove_batch(self, requests: Sequence[Request]) -> None:
        """See `Queue.remove_batch`: they run, so the virtual time is that of the first of them."""
        if not self._shares:
            super().remove_batch(requests)
            return
        self._virtual = max(self._virtual, min(request.place[1] for request in requests))
        super().remove_batch(requests)
        for request in requests:
            share = self._shares[request.tenant]
            share.drop(request)
            self._let_ahead(share)
        self._end_if_empty()

    def demote(self, request: Request) -> None:
        """See `Queue.demote`: behind all others of its tenant and level, and of what is ahead."""
        if not self._shares:
            super().demote(request)
            return
        share = self._take_out(request)
        self._add(share, request, self._place_for(request, delayed=True))

    def displace_for(self, request: Request) -> list[Request]:
        """Where there is no room for this request: whom to refuse instead of it, taken out already.

        They are the last of the tenant that has most of what is short, requests or bytes, for its
        weight, if that is still more than what the newcomer's tenant would have. Nobody otherwise.
        """
        if self._levels_matter or not self._count:
            return []
        if not self._shares:
            if request.tenant == self._only:
                return []
            self._share_out()
        limits = self._limits
        crowded = self._count >= limits.max_requests
        excess = max(0, self.nbytes + request.nbytes - limits.max_bytes)

        def part(share: _Share, count: int = 0, nbytes: int = 0) -> float:
            return (share.count + count if crowded else share.nbytes + nbytes) / share.weight

        own = self._share_of(request)
        largest = max(self._shares.values(), key=part)
        if largest is own:
            return []
        displaced: list[Request] = []
        freed = 0
        for last in largest.last_first():
            if displaced and freed >= excess:
                break
            displaced.append(last)
            freed += last.nbytes
        left = part(largest, -len(displaced), -freed)
        if freed < excess or left < part(own, 1, request.nbytes):
            return []
        for last in displaced:
            self._take_out(last)
        self._let_ahead(largest)
        return displaced

    def check_invariants(self) -> None:
        """See `Queue.check_invariants`."""
        super().check_invariants()
        if not self._shares:
            tenants = {request.tenant for request in self}
            assert self._levels_matter or len(tenants) <= 1, "tenants wait in one order"
            return
        ahead = {r.id: r for group in self.groups() for r in group.requests}
        assert ahead == {
            entry.request.id: entry.request
            for share in self._shares.values()
            for entry in share.ahead.values()
        }, "what is ahead is misfiled"
        for tenant, share in self._shares.items():
            places = [entry.place for entry in share.ahead.values()]
            places += [request.place for request in share.behind]
            assert places == sorted(places), "the order of urgency is broken"
            starts = [entry.start for entry in share.ahead.values()]
            assert starts == sorted(starts), "somebody begins before who is more urgent"
            own = [*share.behind, *(entry.request for entry in share.ahead.values())]
            assert all(request.tenant == tenant for request in own), "a tenant pays for another"
            assert share.count == len(own), "a tenant's requests are miscounted"
            assert share.nbytes == sum(r.nbytes for r in own), "a tenant's bytes are miscounted"
            assert share.rows_ahead == sum(e.request.rows for e in share.ahead.values())
            assert share.rows_ahead >= self._rows_ahead or not share.behind, "somebody is held back"

    def _share_out(self) -> None:
        """A second tenant comes: those who wait go behind, and the first of them ahead again."""
        waiting = list(self)
        self._empty()
        share = self._share_of(waiting[0])
        for request in waiting:
            self._add_behind(share, request, request.place)
        self._let_ahead(share)

    def _share_of(self, request: Request) -> _Share:
        share = self._shares.get(request.tenant)
        if share is None:
            share = self._shares[request.tenant] = _Share()
        share.weight = request.weight
        return share

    def _add(self, share: _Share, request: Request, place: Place) -> None:
        """Where its urgency has it, ahead or behind."""
        if not share.ahead or place > next(reversed(share.ahead.values())).place:
            self._add_behind(share, request, place)
            self._let_ahead(share)
            return
        entries = list(share.ahead.values())
        overtaken = entries[bisect_left(entries, place, key=_PLACE) :]
        for entry in overtaken:
            super().remove_batch([entry.request])
            del share.ahead[entry.request.id]
            share.rows_ahead -= entry.request.rows
        share.start = share.finish = overtaken[0].start
        share.count += 1
        share.nbytes += request.nbytes
        self._begin(share, request, place)
        for entry in overtaken:
            self._begin(share, entry.request, entry.place)
        # As many as before, the last of which were the first behind.
        while overtaken and share.rows_ahead - overtaken[-1].request.rows >= self._rows_ahead:
            last = overtaken.pop()
            share.finish -= share.ahead[last.request.id].cost
            super().remove_batch([last.request])
            share.drop(last.request)
            self._add_behind(share, last.request, last.place)

    def _add_behind(self, share: _Share, request: Request, place: Place) -> None:
        request.place = place
        if not share.behind or share.behind[-1].place < place:
            share.behind.append(request)
        else:
            insort(share.behind, request, key=_PLACE)
        share.count += 1
        share.nbytes += request.nbytes
        self._count += 1
        self.nbytes += request.nbytes

    def _take_out(self, request: Request) -> _Share:
        """Out of the queue without having run: what it was charged is given back."""
        share = self._shares[request.tenant]
        if request.id in share.ahead:
            share.finish -= share.ahead[request.id].cost
            super().remove_batch([request])
        else:
            del share.behind[bisect_left(share.behind, request.place, key=_PLACE)]
            request.place = NOWHERE
            self._count -= 1
            self.nbytes -= request.nbytes
        share.drop(request)
        return share

    def _let_ahead(self, share: _Share) -> None:
        while share.behind and share.rows_ahead < self._rows_ahead:
            request = share.behind.pop(0)
            self._count -= 1
            self.nbytes -= request.nbytes
            self._begin(share, request, request.place)

    def _begin(self, share: _Share, request: Request, place: Place) -> None:
        # What was given back must not let a request begin before one that is more urgent.
        share.start = max(self._virtual, share.finish, share.start)
        cost = self._work_s(request) / share.weight
        share.finish = share.start + cost
        share.ahead[request.id] = _Ahead(request, place, share.start, cost)
        share.rows_ahead += request.rows
        self._insert(request, (DELAYED if is_delayed(place) else 0, share.start, request.id))

    def _end_if_empty(self) -> None:
        if not self._count:
            self._shares.clear()
            self._virtual = 0.0

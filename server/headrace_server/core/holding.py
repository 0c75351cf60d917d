"""When a batch is worth waiting for: until the workers keep up, and while a burst goes on."""

from __future__ import annotations

from collections.abc import Hashable

from headrace_server.core.company import Company
from headrace_server.core.demand import Demand
from headrace_server.core.policy import Formation, Hold
from headrace_server.core.request import DispatchReason, Request, soonest_deadline_s
from headrace_server.core.timetable import Timetable

SPARE = 1.4
"""What one more row may cost that is waited for, in units of what is left for it. Where rows come
at a rate r, m workers have `m / r` for each of them; one that waits for the next is idle for `1 /
r`, so `(m - 1) / r` is left: nothing with one worker, which never waits. Not all idle time would
have been used: capacity is highest at 1.4 and 1.5. At 1.2 it is 3 % less with two workers on a
device that works in steps of rows; with no such bound, 1 % less on one that does not."""

AT_LEISURE = 4.0
"""Durations of the largest batch that a request has time for who need not be held: until it is
due, several batches have grown behind one another."""

SILENCE = 5.0
"""Mean gaps between arrivals without any after which nobody is waited for any more: the burst is
over. In a Poisson process one gap in 150 is so long; capacity does not suffer from it."""

TIMER_S = 0.0005
"""Timers of the serving loop are late by 0.13 to 0.27 ms (asyncio's own by up to 1.2): a hold ends
so much before its last moment, and none is made for less."""

WORTH_TIMERS = 4.0
"""How many times as long as a timer may be late what is saved must be, for the next one of a burst
to be waited for: the timer may cost a quarter of it."""

MOST_KEYS = 256
"""Batch keys whose arrivals are remembered."""


class Holding:
    """Holds batches that gain by it.

    Args:
        timer_s: how late a timer of the engine may be, in seconds.
    """

    def __init__(self, timer_s: float) -> None:
        self._timer_s = timer_s
        self._companies: dict[Hashable, Company] = {}

    def arrived(self, request: Request, now: float) -> None:
        """A request arrived that others of its key may wait for."""
        company = self._companies.get(request.key)
        if company is None:
            if len(self._companies) >= MOST_KEYS:
                self._companies.clear()
            company = self._companies[request.key] = Company()
        company.add(now)

    def another_comes(self, head: Request, times: Timetable, demand: Demand) -> bool:
        """Whether the next one of a burst is to be expected soon."""
        company = self._companies.get(head.key)
        if company is None:
            return False
        silent_s = demand.opening.now - company.last_s
        return silent_s < self._rest_of_burst_s(company, head, times, demand)

    def held(
        self,
        formation: Formation,
        head: Request,
        rate: float,
        grown_s: float,
        times: Timetable,
        demand: Demand,
    ) -> Formation | Hold:
        """The formation, or a hold while its `rate` falls short of the need, or while a burst goes
        on.

        The wait ends at the last moment at which a batch that takes `grown_s` is in time, or when
        nobody has joined for a while: who comes and rides with others is not waited for.
        """
        company = self._companies.get(head.key)
        if company is None:  # as for whoever rides alone
            return formation
        opening = demand.opening
        if self._keeps_up(head, formation.rows, rate, company.gap_s, times, demand):
            left_s = (head.deadline_s - opening.start_s) / demand.margin
            enough = times.enough(min(times.most_rows, times.rows_within(left_s)))
            grows = formation.rows < enough
            silence_s = self._rest_of_burst_s(company, head, times, demand) if grows else 0.0
        else:
            silence_s = SILENCE * company.gap_s
        if silence_s <= 0.0:
            return formation
        silent_s = max(request.joined_s for request in formation.requests) + silence_s
        if silent_s <= opening.now:
            return formation
        until_s = soonest_deadline_s(formation.requests) - demand.margin * grown_s - self._timer_s
        if until_s <= opening.start_s:
            reason = DispatchReason.LAST_MOMENT
            return Formation(formation.requests, formation.rows, reason, formation.complete)
        return Hold(min(until_s, silent_s))

    @staticmethod
    def _keeps_up(
        head: Request, rows: int, rate: float, gap_s: float, times: Timetable, demand: Demand
    ) -> bool:
        """Whether a batch of this head, of so many rows, at this rate may go, as far as the need is
        concerned; those who could join it come every `gap_s`.

        Nobody waits for that where nobody is expected in time, and where deadlines leave all the
        time: there batches grow by themselves while the workers are busy, and soon enough. Nor
        where a row that is waited for costs more than is left for it, see `SPARE`, as with one
        worker. While other workers are idle there is time to make good for a small batch, so less
        is asked, and nothing while all others are.
        """
        workers = len(demand.opening.free_s)
        budget_s = head.deadline_s - head.arrival_s
        at_leisure_s = AT_LEISURE * times.duration_s(times.most_rows)
        if workers == 1 or not gap_s < budget_s < at_leisure_s:
            return True
        possible = min(demand.rows_possible(head, times), times.most_rows)
        if times.enough(possible) <= head.rows:
            return True  # batching gains nothing here
        # The next one, or as many as a batch can hold: a device may work in steps of rows.
        row_s = times.duration_s(head.rows) / head.rows
        left_s = SPARE * (workers - 1) * row_s
        more_s = times.more_s(rows, rows + head.rows)
        if possible > rows:
            more_s = min(more_s, times.more_s(rows, possible))
        # No more come than the workers can take.
        load = min(demand.load, workers * times.rate(possible, head.rows))
        if more_s * load >= left_s:
            return True
        busy_others = min(demand.opening.running, workers) - 1
        asked = demand.most_need * busy_others / (workers - 1)
        return rate >= demand.at_most(asked, head, times, possible)

    def _rest_of_burst_s(
        self, company: Company, head: Request, times: Timetable, demand: Demand
    ) -> float:
        """How long after the last one that came the next one of a burst is worth waiting for.

        Bursts would otherwise take the idle workers with their first few members, one by one, and
        find none for the rest; and what one batch saves is time for the next. Where the workers
        would keep up without any batches, only a part of what is saved would have been used.
        """
        saved_s = times.saved_s(head.rows) * min(1.0, demand.need)
        if saved_s < WORTH_TIMERS * self._timer_s:
            return 0.0
        return company.rest_of_burst_s(saved_s)

"""The learned policy: who rides together, when, and who is refused, by what a batch costs.

The most urgent request heads the batch, so nothing can starve. Where lengths differ, its
neighbours in length are divided into the batches that take the least time in sum, and its own one
goes. Counting requests instead of time would drag in everyone whom the padding ruins; any batch
without the head could leave it waiting for ever.

*Work per second* is the only currency: the time that the members of a batch would take alone, over
the time they take together. `need`, the seconds of work that arrive per second and
worker, says what rate every batch must have for the workers to keep up:

- a batch that falls short of it is held, up to the head's last safe moment, while one more row
  costs less than the other workers have to spare for it (with one worker there is nothing);
- where requests come in bursts, a batch that would gain by it is held for as long as the next one
  of the burst is likely to come, with any number of workers;
- a head whose deadline cuts its batch down, where a larger one could begin in its place and
  somebody behind it would miss his, costs the others more than it is worth: it is refused at once.

The need is an estimate. No batch is too small for it unless it is so high for sure, and a batch
keeps up with it only where it does for sure: in bursts, where little is sure, the queue itself
decides.

No more is asked of a batch than a request with the head's time to live could ever wait for.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from functools import partial
from itertools import accumulate, islice

from headrace_server.core.arrivals import ArrivingWork
from headrace_server.core.confirmed import Confirmed
from headrace_server.core.cost import CostModel, Curve, Sample
from headrace_server.core.demand import Demand
from headrace_server.core.errors import Reason
from headrace_server.core.explanation import Explanation, explanation_of
from headrace_server.core.holding import AT_LEISURE, TIMER_S, Holding
from headrace_server.core.memory import MemoryBudget
from headrace_server.core.policy import Decision, Formation, Hold, Opening, Refusal, form_any
from headrace_server.core.queue import Group, Queue, Urgency
from headrace_server.core.request import (
    Batch,
    DispatchReason,
    Request,
    cost_key,
    soonest_deadline_s,
)
from headrace_server.core.shedding import shed_below, too_dear
from headrace_server.core.timetable import WORTHWHILE, Timetable
from headrace_server.core.windows import MAX_REACH, Bounds, best_window, head_group

BRIEF_S = 0.002
COMPANY, PLENTY = 4, 24
LONGEST_S = 0.006
"""After a batch of at least `COMPANY` requests that took less than `BRIEF_S`, the next one begins
when the process has read all that has come, when `PLENTY` rows wait, or `LONGEST_S` after that one
began. Such batches cost the process more than the device: while it is busy with answers and with
requests that come, a device that waits for it loses nothing, and every batch that is saved makes it
faster. 64 callers of a 784-512-512-10 network on 2 cores ride in batches of 18 so, of 5 to 10 with
a fixed pace, for three quarters of the CPU per request. Longer batches, three callers and fewer,
and those who are due within milliseconds never wait."""

MAX_MARGIN = 2.0
"""The most by which the cost model's own margin is believed when deadlines are looked at."""

FEW = 4
"""Up to so many who wait go one after another where that answers them earlier on the mean. More are
a burst, or the end of a lull that the estimate of the load knows nothing of yet."""

LONGER, SCARCE = 1.5, 1.3
"""How much longer a batch may get for the last few per cent of work per second, and the multiple of
the need below which they matter. Capacity is half a per cent higher than with 1.05."""

MOST_TIMETABLES = 128
"""Curves written out by rows that are kept."""

PATIENCE_S = 10.0
AGEING_S = 1.0
DEFAULT_PRIORITY = 5
LEAST_PRIORITY = 10
"""Earliest deadline first, with ageing: a request is as urgent as one whose deadline is
`PATIENCE_S` after it arrived, or its own if that is earlier, moved by `AGEING_S` for each level of
priority. So one of level p is overtaken only by those that arrive within
`PATIENCE_S + AGEING_S * (p - 1)` seconds after it: a low priority is slower, never starved."""


class _End(Enum):
    """Why a batch takes nobody more."""

    ROOM = auto()
    THEIR_DEADLINES = auto()
    """Of those who ride."""
    QUEUE = auto()
    """There are no others, or none whose own deadlines allow it."""


class AdaptivePolicy:
    """Forms the batches that pay, and keeps deadlines where they can be kept.

    Args:
        max_batch_size: rows of the largest batch.
        sweep: batches that were timed when the model was loaded.
        max_batch_bytes: bytes of the largest batch; one larger request still rides, alone.
        timer_s: how late a timer of the engine may be, in seconds.

    Starvation is impossible by construction: each batch holds the most urgent request of its
    group, and what is held or refused for the sake of others is so only within its own deadline.
    Nobody joins a batch that would then be too late for one of its members.
    """

    def __init__(
        self,
        max_batch_size: int,
        sweep: Iterable[Sample] = (),
        max_batch_bytes: int = 1 << 28,
        *,
        timer_s: float = TIMER_S,
    ) -> None:
        self._max_rows = max_batch_size
        self._memory = MemoryBudget(max_batch_bytes)
        self.cost = CostModel(sweep)
        self._arriving = ArrivingWork()
        self._last_of_many: Batch | None = None
        self._holding = Holding(timer_s)
        self._confirmed = Confirmed()
        self._timetables: dict[tuple[Curve, int], Timetable] = {}

    @property
    def most_rows(self) -> int:
        """See `BatchPolicy.most_rows`."""
        return self._max_rows

    def urgency(self, request: Request) -> Urgency:
        """See `BatchPolicy.urgency`, and `PATIENCE_S`."""
        patient_until_s = min(request.deadline_s, request.arrival_s + PATIENCE_S)
        return 0, patient_until_s + AGEING_S * (request.priority - DEFAULT_PRIORITY)

    def work_s(self, request: Request) -> float:
        """See `BatchPolicy.work_s`."""
        return self.cost.work_s(request)

    def arrived(self, request: Request, now: float) -> None:
        """See `BatchPolicy.arrived`."""
        curve = self.cost.curve
        if curve is None:
            return
        work_s = curve.at(request.rows, request.length)
        if now + work_s <= request.deadline_s:  # else no worker will ever see it
            self._arriving.add(work_s, now)
            self._holding.arrived(request, now)

    def too_late(self, request: Request, opening: Opening) -> bool:
        """See `BatchPolicy.too_late`. Never before something is known of durations, and not
        where a worker is free and nothing confirmed it for a while."""
        if request.deadline_s == math.inf:
            return False
        curve = self._curve(request, opening)
        if curve is None:
            return False
        start_s, now = opening.start_s, opening.now
        if start_s <= now and not self._confirmed.lately(request, now):
            return False
        return start_s + curve.at(request.rows, request.length) > request.deadline_s

    def form(self, queue: Queue, opening: Opening) -> Decision:
        """See `BatchPolicy.form`. Looks at no more requests than one batch holds, or `MAX_REACH`
        shorter and as many longer ones where lengths differ, and plays a few batches forward."""
        last = self._last_of_many
        if last is not None and not opening.idle and queue.rows < min(PLENTY, self._max_rows):
            due_s = last.dispatched_s + LONGEST_S
            leisure_s = due_s + AT_LEISURE * BRIEF_S
            if opening.now < due_s and queue.next_deadline_s() > leisure_s:
                return Hold(due_s, or_idle=True)
        return form_any(queue, self._form_group, opening)

    def durations_s(self, batch: Batch) -> tuple[float | None, float | None]:
        """See `BatchPolicy.durations_s`: what the cost model says, and with its own margin."""
        expected_s = self.cost.duration_s(batch)
        return expected_s, None if expected_s is None else expected_s * self.cost.margin

    def observe(self, batch: Batch, duration_s: float) -> None:
        """Take the batch into the cost model."""
        brief = duration_s < BRIEF_S and len(batch.requests) >= COMPANY
        self._last_of_many = batch if brief else None
        self._confirmed.observe(batch, duration_s)
        self.cost.observe_batch(batch, duration_s)
        self._memory.held(batch.started_s + duration_s)

    def out_of_memory(self, batch: Batch, now: float) -> None:
        """See `BatchPolicy.out_of_memory`."""
        self._memory.out_of_memory(batch, now)

    def explain(self, lengths: Sequence[int]) -> Explanation:
        """See `BatchPolicy.explain`. Without lengths: for those that were timed."""
        curve = self.cost.curve
        chosen = () if curve is None else (lengths or self.cost.lengths)
        timetables = {x: self._timetable(curve, x) for x in chosen if curve is not None}
        return explanation_of(timetables, self._max_rows, self.cost.margin)

    # -- one group ----------------------------------------------------------------------------

    def _form_group(self, group: Group, opening: Opening) -> Decision:
        curve = self._curve(group.head, opening)
        if curve is None:
            members, rows, end = self._in_order(group, None, opening.start_s)
            full = end is _End.ROOM
            reason = DispatchReason.FULL if full else DispatchReason.IMMEDIATE
            return Formation(members, rows, reason, complete=full)
        if self.too_late(group.head, opening):
            return Refusal(group.head, Reason.PREDICTED_LATE)
        demand = self._demand(opening)
        if group.lengths_differ:
            return self._by_length(group, curve, demand)
        return self._by_urgency(group, self._timetable(curve, group.head.length), demand)

    def _by_urgency(self, group: Group, times: Timetable, demand: Demand) -> Decision:
        """Nobody pads anybody: in order of urgency, as many as make the batch worth it."""
        head = group.head
        members, rows, end = self._in_order(group, times, demand.opening.start_s)
        if end is _End.THEIR_DEADLINES:
            another_comes = partial(self._holding.another_comes, head, times, demand)
            if too_dear(group, members, rows, another_comes, times, demand):
                return Refusal(head, Reason.OVERLOADED)
        count = self._enough(members, rows, times, demand)
        if count < len(members):
            chosen = members[:count]
            chosen_rows = sum(request.rows for request in chosen)
            # Whoever comes could join it by now, and does not have to: nobody is waited for.
            return Formation(chosen, chosen_rows, DispatchReason.BEST_SIZE, complete=False)
        if end is _End.ROOM:
            return Formation(members, rows, DispatchReason.FULL, complete=True)
        reason = DispatchReason.IMMEDIATE if rows == group.rows else DispatchReason.IN_TIME
        formation = Formation(members, rows, reason, complete=False)
        rate = times.work_s(members, rows) / times.duration_s(rows)
        grown_s = times.duration_s(min(rows + head.rows, self._max_rows))
        return self._holding.held(formation, head, rate, grown_s, times, demand)

    def _by_length(self, group: Group, curve: Curve, demand: Demand) -> Decision:
        """The head's group, when its neighbours are divided into the cheapest batches; where its
        deadline does not allow that, the window with the most work per second that it does."""
        head = group.head
        times = self._timetable(curve, head.length)
        requests, at = group.neighbours(min(self._max_rows - 1, MAX_REACH))
        start_s = demand.opening.start_s
        bounds = Bounds(self._max_rows, self._memory.max_bytes, start_s, demand.margin)
        window, near = head_group(requests, at, curve, bounds)
        reason = DispatchReason.BEST_WINDOW
        if bounds.too_late(window):
            best, window = window, best_window(near, curve, bounds)
            reason = DispatchReason.IN_TIME
            if head.deadline_s <= best.deadline_s:
                least = min(WORTHWHILE * best.rate, shed_below(head, times, demand))
                if window.rate < least:
                    return Refusal(head, Reason.OVERLOADED)
        members = requests[window.first : window.end]
        complete = window.rows == self._max_rows
        formation = Formation(members, window.rows, reason, complete)
        if complete:
            return formation
        grown_s = curve.at(window.rows + head.rows, members[-1].length)
        return self._holding.held(formation, head, window.rate, grown_s, times, demand)

    # -- parts of a decision --------------------------------------------------------------------

    def _in_order(
        self, group: Group, times: Timetable | None, start_s: float
    ) -> tuple[list[Request], int, _End]:
        """As many as fit and are in time, in order of urgency; their rows; why there are no
        more."""
        most_rows, most_bytes = self._max_rows, self._memory.max_bytes
        head, requests = group.head, group.requests
        if group.rows == len(requests) and most_rows * group.widest_row <= most_bytes:
            # Nearly always: single rows, and nobody's deadline before that of the most urgent.
            in_time = most_rows
            if times is not None and head.deadline_s < math.inf:
                in_time = max(1, times.rows_within((head.deadline_s - start_s) / self._margin))
            members = requests[: min(most_rows, in_time)]
            if head.deadline_s <= soonest_deadline_s(members):
                rows = len(members)
                if rows == most_rows:
                    return members, rows, _End.ROOM
                return members, rows, _End.QUEUE if rows == group.rows else _End.THEIR_DEADLINES
        members = []
        rows_in_time = most_rows
        rows = 0
        row_nbytes = 0.0
        soonest_s = math.inf
        # Twice a batch: those whose own deadline forbids it are passed over, but not for ever.
        for request in islice(requests, 2 * most_rows):
            grown = rows + request.rows
            if request.nbytes > row_nbytes * request.rows:
                row_nbytes = request.nbytes / request.rows
            if members and (grown > most_rows or grown * row_nbytes > most_bytes):
                return members, rows, _End.ROOM
            if request.deadline_s < soonest_s and times is not None:
                within = times.rows_within((request.deadline_s - start_s) / self._margin)
                if members and within < grown:
                    continue  # its own deadline is too soon for this batch; others may fit
                soonest_s = request.deadline_s
                rows_in_time = min(rows_in_time, within)
            if grown > rows_in_time and members:
                return members, rows, _End.THEIR_DEADLINES
            members.append(request)
            rows = grown
            if rows >= most_rows:
                return members, rows, _End.ROOM
        return members, rows, _End.QUEUE

    def _enough(self, members: list[Request], rows: int, times: Timetable, demand: Demand) -> int:
        """How many of the members, from the first on, make the batch worth it: the fewest whose
        work per second is `WORTHWHILE` next to the best; where that is below `SCARCE` needs, as
        many as do not take much `LONGER`; one where a `FEW` are quicker alone."""
        by_count: Sequence[int]
        if rows == len(members):
            if self._go_alone(members, times, demand):
                return 1
            by_count = range(1, rows + 1)
            enough_rows = times.enough(rows)
            rate = times.rate(enough_rows, 1)
        else:
            by_count = list(accumulate(request.rows for request in members))
            work = accumulate(times.duration_s(request.rows) for request in members)
            rates = [w / times.duration_s(r) for w, r in zip(work, by_count, strict=True)]
            enough = WORTHWHILE * max(rates)
            rate, enough_rows = next(
                (rate, r) for rate, r in zip(rates, by_count, strict=True) if rate >= enough
            )
        if rate < SCARCE * demand.need:
            enough_rows = times.rows_within(LONGER * times.duration_s(enough_rows))
        return bisect_right(by_count, enough_rows)

    def _go_alone(self, members: list[Request], times: Timetable, demand: Demand) -> bool:
        """Whether a few of one row each are better off one by one, and all of them in time."""
        count = len(members)
        # Brief batches cost the process more than the device: there each one counts.
        if not 1 < count <= FEW or times.duration_s(1) < BRIEF_S:
            return False
        opening = demand.opening
        arriving = self._arriving.lately_per_second(opening.now)
        load = arriving * self.cost.slowdown(opening.running) / len(opening.free_s)
        if not times.quicker_alone(count, load):
            return False
        done_s = opening.start_s + demand.margin * count * times.duration_s(1)
        return all(done_s <= request.deadline_s for request in members)

    @property
    def _margin(self) -> float:
        return min(MAX_MARGIN, self.cost.margin)

    def _demand(self, opening: Opening) -> Demand:
        load = self._arriving.per_second(opening.now) * self.cost.slowdown(opening.running)
        return Demand(opening, load, self._arriving.uncertainty, self._margin)

    def _curve(self, request: Request, opening: Opening) -> Curve | None:
        return self.cost.curve_for(cost_key(request), opening.running)

    def _timetable(self, curve: Curve, length: int) -> Timetable:
        """What the curve says of this length."""
        times = self._timetables.get((curve, length))
        if times is None:
            if len(self._timetables) >= MOST_TIMETABLES:
                self._timetables.clear()  # most of them are of curves that were refined since
            times = self._timetables[curve, length] = Timetable(curve, length, self._max_rows)
        return times

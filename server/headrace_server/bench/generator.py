"""The load of one process: the loop that sends, waits and takes the time.

Latencies are kept one by one, 16 bytes for each request, and merged by joining them: percentiles
are exact, and a million requests take less memory than the libraries this imports.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np

from headrace_server.bench.arrivals import due_times
from headrace_server.bench.orders import Begin, Setup, StepReport, Stop, WindowReport
from headrace_server.bench.plan import ClosedLoop, OpenLoop
from headrace_server.bench.results import Seconds
from headrace_server.bench.transport import Transport

now_s = time.monotonic


class IdleSelector(selectors.SelectSelector):
    """Waits to the microsecond (epoll rounds up to whole milliseconds, which would be the lag of
    every request), and adds up in `idle_s` how long it waited.

    gRPC waits for its connections by itself: here are a few descriptors, however many calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.idle_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class does, and timed."""
        began_s = now_s()
        events = super().select(timeout)
        self.idle_s += now_s() - began_s
        return events


class Generator:
    """Sends steps of load, one after the other.

    Args:
        setup: what to send, and which part of the load is this process's own.
        transport: carries the requests.
        selector: that of the running event loop.
    """

    def __init__(self, setup: Setup, transport: Transport, selector: IdleSelector) -> None:
        self._setup = setup
        self._transport = transport
        self._selector = selector
        # Processes begin in different places, so that they do not send the same at the same time.
        first = setup.index * len(setup.requests) // setup.processes
        self._requests = islice(cycle(setup.requests), first, None)

    async def run(
        self, begin: Begin, stop: asyncio.Future[Stop], report: Callable[[WindowReport], None]
    ) -> StepReport:
        """Send the load of one step until `stop` is resolved; `report` is called after each
        window."""
        step = _Step(self._transport, self._requests)
        tasks = [asyncio.create_task(_report_windows(step, begin, report))]
        try:
            await asyncio.sleep(begin.begin_s - now_s())
            if isinstance(begin.load, ClosedLoop):
                own = begin.load.share(self._setup.index, self._setup.processes)
                tasks += [asyncio.create_task(step.caller()) for _ in range(own.concurrency)]
            else:
                tasks.append(asyncio.create_task(step.pace(self._due(begin.load, begin.begin_s))))
            began_s, idle_s = now_s(), self._selector.idle_s
            end = await _first(stop, tasks)
            elapsed_s = max(now_s() - began_s, 1e-9)
            busy = 1 - (self._selector.idle_s - idle_s) / elapsed_s
            tasks[0].cancel()
            if end.hold:
                await step.settled()
        finally:
            await _end([*tasks, *step.under_way])
        return step.result(end, busy)

    def _due(self, load: OpenLoop, start_s: float) -> Iterator[float]:
        times_s = due_times(load.arrivals, load.rate, self._setup.seed, start_s)
        return islice(times_s, self._setup.index, None, self._setup.processes)


class _Step:
    """The requests of one step, from being due to being counted."""

    def __init__(self, transport: Transport, requests: Iterator[bytes]) -> None:
        self._send = transport.send
        self._requests = requests
        self._due_s, self._done_s = array("d"), array("d")  # of those answered, as answers came
        self._failed: list[tuple[float, str]] = []
        self._sent_s, self._lag_s = array("d"), array("d")  # open loop only
        self.under_way: set[asyncio.Task[None]] = set()
        # Requests that are under way when the step is told to stop are waited for, later ones not.
        self._in_flight = 0
        self._stopping = False
        self._settled = asyncio.Event()

    async def caller(self) -> None:
        """One caller of a closed loop."""
        while True:
            await self._request(now_s())

    async def pace(self, due_times_s: Iterator[float]) -> None:
        """Send each request when it is due. One that is late goes out at once, and is late: what
        a real caller would have waited counts."""
        for due_s in due_times_s:
            await asyncio.sleep(max(0.0, due_s - now_s()))
            sent_s = now_s()
            self._sent_s.append(sent_s)
            self._lag_s.append(sent_s - due_s)
            task = asyncio.create_task(self._request(due_s))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)

    async def _request(self, due_s: float) -> None:
        counts = not self._stopping
        self._in_flight += counts
        reason = await self._send(next(self._requests))
        done_s = now_s()
        if reason:
            self._failed.append((due_s, reason))
        else:
            self._due_s.append(due_s)
            self._done_s.append(done_s)
        self._in_flight -= counts
        if self._stopping and not self._in_flight:
            self._settled.set()

    async def settled(self) -> None:
        """Wait until everything that is under way now is answered or has failed."""
        self._stopping = True
        if self._in_flight:
            await self._settled.wait()

    def answered(self, first: int) -> tuple[int, Seconds]:
        """Number of answers so far, and the latencies of all but the `first` ones."""
        due_s, done_s = np.array(self._due_s[first:]), np.array(self._done_s[first:])
        return len(self._done_s), (done_s - due_s).astype(np.float32)

    def result(self, end: Stop, busy: float) -> StepReport:
        """The requests that were due from `end.since_s` until before `end.until_s`. Lags are of
        those sent in that time: where they are long, what was due may not be sent at all."""
        due_s, done_s = np.array(self._due_s), np.array(self._done_s)
        latencies_s = (done_s - due_s)[(due_s >= end.since_s) & (due_s < end.until_s)]
        sent_s, lags_s = np.array(self._sent_s), np.array(self._lag_s)
        lags_s = lags_s[(sent_s >= end.since_s) & (sent_s < end.until_s)]
        return StepReport(
            latencies_s.astype(np.float32),
            Counter(why for at_s, why in self._failed if end.since_s <= at_s < end.until_s),
            lags_s.astype(np.float32),
            busy,
        )


async def _report_windows(
    step: _Step, begin: Begin, report: Callable[[WindowReport], None]
) -> None:
    await asyncio.sleep(begin.measure_s - now_s())
    reported, _ = step.answered(0)
    end_s = begin.measure_s
    while True:
        end_s += begin.window_s
        await asyncio.sleep(end_s - now_s())
        reported, latencies_s = step.answered(reported)
        report(WindowReport(latencies_s))


async def _first(stop: asyncio.Future[Stop], tasks: Sequence[asyncio.Task[None]]) -> Stop:
    # None of the tasks ends by itself unless it fails; then the step fails with it.
    either: list[asyncio.Future[Any]] = [stop, *tasks]
    done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    for ended in done:
        ended.result()
    return await stop


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Callers: as fast as they are answered, to measure the capacity, or at a rate of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.soak.calls import Call, End, Tally, judge_answer, judge_error
from headrace import AsyncClient
from headrace.retry import RetryPolicy
from headrace_server.bench.arrivals import Renewal, due_times

ONCE = RetryPolicy(max_attempts=1)
"""What the server does not do itself is not done for it."""

HUNG_AFTER_S = 60.0
"""After the deadline of the last call. What goes on then waits for ever."""

CALIBRATION_CALLERS = 48
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Mix:
    """What is sent: shares of bad calls, cancelled ones, and such without a deadline, and the
    deadline of the others."""

    good: Sequence[Call]
    bad: Sequence[Call]
    bad_share: float = 0.05
    cancelled_share: float = 0.05
    endless_share: float = 0.1
    deadline_s: float = 30.0


class Traffic:
    """Sends calls over a client of each kind, in turn: unary calls and shared streams."""

    def __init__(self, clients: Sequence[AsyncClient], mix: Mix, seed: int) -> None:
        self.tally = Tally()
        self.sent = 0
        self._clients = clients
        self._mix = mix
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._under_way: dict[asyncio.Task[None], Call] = {}

    async def capacity(self, seconds: float) -> float:
        """Valid calls answered per second when each caller sends as soon as it is answered."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time() + WARM_UP_S
        end_s = begin_s + seconds
        answered = 0

        async def caller() -> None:
            nonlocal answered
            while (sent_s := loop.time()) < end_s:
                await self._call(self._pick(self._mix.good), loop.time())
                answered += begin_s <= sent_s and loop.time() <= end_s

        await asyncio.gather(*(caller() for _ in range(CALIBRATION_CALLERS)))
        return answered / seconds

    async def run(self, rate: float, seconds: float) -> None:
        """Send calls at the moments of a Poisson process, whatever becomes of them."""
        loop = asyncio.get_running_loop()
        mix, random = self._mix, self._random
        began_s = loop.time()
        for due_s in due_times(Renewal(), rate, self._seed, began_s):
            if due_s >= began_s + seconds:
                return
            # Also where it is late: the calls must get on.
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            call = self._pick(mix.bad if random.random() < mix.bad_share else mix.good)
            task = asyncio.create_task(self._call(call, due_s))
            self._under_way[task] = call
            task.add_done_callback(self._under_way.pop)
            if random.random() < mix.cancelled_share:
                loop.call_later(float(random.exponential(0.02)), task.cancel)

    async def finish(self) -> None:
        """Wait for what is under way; what does not end, hangs."""
        if self._under_way:
            await asyncio.wait([*self._under_way], timeout=self._mix.deadline_s + HUNG_AFTER_S)
        for task, call in [*self._under_way.items()]:
            self.tally.count(call, End.HUNG, "no end of it long after its deadline")
            task.remove_done_callback(self._under_way.pop)
            task.cancel()

    async def _call(self, call: Call, due_s: float) -> None:
        self.sent += 1
        loop = asyncio.get_running_loop()
        self.tally.lag_s = max(self.tally.lag_s, loop.time() - due_s)
        request_id = str(self.sent)
        client = self._clients[self.sent % len(self._clients)]
        endless = self._random.random() < self._mix.endless_share
        try:
            result = await client.infer(
                call.model,
                call.inputs,
                request_id=request_id,
                timeout=None if endless else self._mix.deadline_s,
                **call.options,
            )
        except asyncio.CancelledError:
            self.tally.count(call, End.CANCELLED, "")
        except Exception as error:
            self.tally.count(call, *judge_error(call, error))
        else:
            self.tally.latencies_s.append(loop.time() - due_s)
            self.tally.count(call, *judge_answer(call, request_id, result))

    def _pick(self, calls: Sequence[Call]) -> Call:
        return calls[int(self._random.integers(len(calls)))]

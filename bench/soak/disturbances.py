"""What is done to the server meanwhile: workers killed, models reloaded, holdings written down."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from random import Random

from bench.resources import Holdings, holdings, middle, workers
from bench.soak.traffic import ONCE
from headrace import AsyncClient, ServerError

RELOAD_TIMEOUT_S = 120.0
CLOSING_S = 10.0
REST_S = 5.0
"""The front gives back what is free every two seconds."""

SETTLE_S = 120.0
"""For every worker to be ready again once nobody kills them."""


class Killer:
    """Sends SIGKILL to a worker drawn by chance, at intervals."""

    def __init__(self, front: int, seed: int) -> None:
        self._front = front
        self._random = Random(seed)
        self.killed: Counter[str] = Counter()

    async def run(self, every_s: float) -> None:
        """Until cancelled. A worker that is still loading is as good as any."""
        while True:
            await asyncio.sleep(every_s)
            if named := workers(self._front):
                pid = self._random.choice(sorted(named))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed[named[pid]] += 1


class Reloader:
    """Loads one model after the other anew, at intervals."""

    def __init__(self, address: str, models: Sequence[str]) -> None:
        self._address = address
        self._models = models
        self.reloaded: Counter[str] = Counter()
        self.failures: list[str] = []

    async def run(self, every_s: float) -> None:
        """Until cancelled."""
        async with AsyncClient(self._address, retry=ONCE) as client:
            for model in cycle(self._models):
                await asyncio.sleep(every_s)
                try:
                    await client.load_model(model, timeout=RELOAD_TIMEOUT_S)
                except ServerError as error:
                    self.failures.append(f"reload of '{model}': {error}")
                else:
                    self.reloaded[model] += 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What was held so many seconds after the start."""

    at_s: float
    held: Holdings


class Bookkeeper:
    """Writes down what the server holds, once per second, and every worker that ever lived."""

    def __init__(self, front: int) -> None:
        self._front = front
        self.readings: list[Reading] = []
        self.front_at_rest: list[int] = []
        self.pids: set[int] = {front}

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            self.readings.append(Reading(loop.time() - began_s, holdings(self._front)))
            self.pids |= set(workers(self._front))
            await asyncio.sleep(1.0)

    async def rest(self) -> None:
        """Write down what the front holds while nobody waits, once it has given back the rest."""
        await asyncio.sleep(REST_S)
        self.front_at_rest.append(holdings(self._front).front_bytes)

    def front_bytes(self, from_s: float, to_s: float) -> float:
        """The median in a stretch of time."""
        return middle([r.held.front_bytes for r in self._between(from_s, to_s)])

    def worker_bytes(self, from_s: float, to_s: float) -> float:
        """The same, of all workers together: of each the most that it held, whoever sat there.

        The most, because those that were killed a moment ago hold little yet.
        """
        most: dict[str, int] = {}
        for reading in self._between(from_s, to_s):
            for name, nbytes in reading.held.worker_bytes.items():
                most[name] = max(nbytes, most.get(name, 0))
        return float(sum(most.values()))

    def _between(self, from_s: float, to_s: float) -> list[Reading]:
        return [r for r in self.readings if from_s <= r.at_s <= to_s]


async def settle(client: AsyncClient, front: int, expected: int) -> bool:
    """Wait until so many workers live and every model is ready; whether that came to be."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while not (await client.server_ready() and len(workers(front)) == expected):
                await asyncio.sleep(0.1)
            return True
    return False


async def settled_holdings(front: int, before: Holdings) -> Holdings:
    """What is held once it is as little as before, or `CLOSING_S` later: connections take a moment
    to close."""
    for _ in range(round(CLOSING_S / 0.1)):
        if (held := holdings(front)).open_files <= before.open_files:
            return held
        await asyncio.sleep(0.1)
    return holdings(front)

"""The engine's side of one front process: spawn, memory, link, end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

from headrace_server.engine.clock import Clock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.fronts import frames
from headrace_server.fronts.exchange import Exchange
from headrace_server.fronts.link import Link
from headrace_server.fronts.segment import NBYTES, Segment
from headrace_server.workers.slab import WritableSlab

START_TIMEOUT_S = 60.0
"""How long a front may take to accept connections; it takes a second where there is a core."""

STOP_TIMEOUT_S = 5.0
"""How long a front may take to end beyond the grace that it is given."""

CLOSED_GRACE_S = 2.0
"""How long one that closed its link may take to end by itself before it is killed."""


class FrontProcess:
    """One front from spawn to end: `spawn`, then `tell` and `told`, and `stop`. `lost` resolves
    once its link is closed and every call that it had is taken back.

    Args:
        deployment_of: finds a deployment by its `Row.number`.
    """

    def __init__(
        self, engine: Engine, deployment_of: Callable[[int], Deployment | None], clock: Clock
    ) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._listening: asyncio.Future[str] = loop.create_future()
        self._requests, self._answers = WritableSlab(), WritableSlab()
        self._descriptors: list[int] = []
        try:
            for slab in (self._requests, self._answers):
                descriptor = slab.reserve(NBYTES)
                assert descriptor is not None, "a slab starts without memory"
                self._descriptors.append(descriptor)
        except BaseException:
            self._close_descriptors()
            raise
        self._exchange = Exchange(
            engine, deployment_of, self._requests.view, Segment(self._answers.view), clock
        )
        self._link = Link(frames.read_from_front, self._receive, self._has_seen, self._closed)
        self._exchange.attach(self._link)
        self._process: asyncio.subprocess.Process | None = None
        self._seen = 0
        self._waiting: dict[asyncio.Future[None], int] = {}

    @property
    def pid(self) -> int | None:
        """The process id, once spawned."""
        return None if self._process is None else self._process.pid

    @property
    def listening(self) -> bool:
        """Whether it accepts connections."""
        return self._listening.done() and not self._listening.result() and not self.lost.done()

    @property
    def running(self) -> int:
        """Its calls that have not ended yet."""
        return self._exchange.running

    async def spawn(
        self, settings: frames.Settings, table: Callable[[], frames.Table], rates: int
    ) -> str:
        """Start the process; returns once it accepts connections, or with why it does not.

        Args:
            table: what calls may find by the time that it is asked.
            rates: descriptor of the file of a `SharedMeter`.

        Raises:
            OSError: there is no process; `lost` is resolved.
        """
        try:
            await self._execute(rates)
        except BaseException:
            self._closed()
            raise
        finally:
            self._close_descriptors()
        self._link.send(settings)
        self._link.send(table())
        await asyncio.wait(
            (self._listening, self.lost),
            timeout=START_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self._listening.done():
            return self._listening.result()
        if self.lost.done():
            return "it ended while it started"
        self.kill()
        return f"it did not accept connections within {START_TIMEOUT_S:g} s"

    async def _execute(self, rates: int) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                passed = (theirs.fileno(), *self._descriptors, rates)
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what lies in the current directory is none of its modules
                    "-m",
                    "headrace_server.fronts.front_main",
                    *map(str, passed),
                    pass_fds=passed,
                    stdin=asyncio.subprocess.DEVNULL,
                    # Signals to the server's process group are for the engine's process alone.
                    start_new_session=True,
                )
            ours.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: self._link, sock=ours)
        except BaseException:
            ours.close()
            raise

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def tell(self, table: frames.Table) -> int:
        """Send what calls may find from now on; returns the number that `told` waits for."""
        bundle = self._link.next_bundle
        self._link.send(table)
        return bundle

    async def told(self, bundle: int) -> None:
        """Wait until the front has dealt with this bundle, and what it found before is here; or
        until it is gone."""
        if self._seen >= bundle or self.lost.done():
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = bundle
        try:
            await waiting
        finally:
            del self._waiting[waiting]

    async def stop(self, grace_s: float) -> None:
        """Let it end its calls, whose answers it has, within so many seconds; wait until it is
        gone."""
        if self.listening:
            self._link.send(frames.Stop(grace_s))
        else:
            self.kill()
        await self._gone(grace_s + STOP_TIMEOUT_S)

    async def reap(self) -> int:
        """Wait for the end of one that was lost; returns its exit status."""
        return await self._gone(CLOSED_GRACE_S)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _gone(self, within_s: float) -> int:
        status = 0
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), within_s)
            except TimeoutError:
                self.kill()
            status = await self._process.wait()
        self._closed()
        self._link.close()
        self._requests.close()
        self._answers.close()
        return status

    def _receive(self, message: frames.FromFront) -> None:
        match message:
            case frames.Submit():
                self._exchange.submit(message)
            case frames.Cancel():
                self._exchange.cancel(message)
            case frames.Invalid():
                self._exchange.count(message)
            case frames.Listening():
                self._listening.set_result(message.problem)

    def _has_seen(self, bundle: int) -> None:
        self._seen = bundle
        self._exchange.seen(bundle)
        for waiting, awaited in self._waiting.items():
            if awaited <= bundle and not waiting.done():
                waiting.set_result(None)

    def _closed(self) -> None:
        self._exchange.close()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        if not self.lost.done():
            self.lost.set_result(None)

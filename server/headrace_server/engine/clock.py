"""Time for the engine: what it reads and what it arms, so that tests can bring their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from headrace_server.serving_loop import Handle, ServingLoop, call_last_of


class Clock(Protocol):
    """Monotonic seconds, and callbacks at moments of that same scale."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Handle:
        """Run the callback at that moment, or soon if it has passed."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> Handle:
        """Run the callback after what the event loop has at hand."""
        ...

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        """Run the callback when the process has nothing else to do, which may be never."""
        ...


class LoopClock:
    """The running event loop's own clock. A loop that does not tell when it is idle counts as idle
    after what it has at hand."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self.call_soon = call_last_of(loop)
        self._loop = loop
        self._call_when_idle: Callable[[Callable[[], None]], object] = (
            loop.call_when_idle if isinstance(loop, ServingLoop) else loop.call_soon
        )

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Handle:
        """See `Clock.call_at`."""
        return self._loop.call_at(when_s, callback)

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        """See `Clock.call_when_idle`."""
        self._call_when_idle(callback)

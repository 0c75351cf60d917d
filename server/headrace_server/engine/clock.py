"""Time for the engine: what it reads and what it arms, so that tests can bring their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None:
        """Never run it. Safe to call at any time."""
        ...


class Clock(Protocol):
    """Monotonic seconds, and callbacks at moments of that same scale."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Run the callback at that moment, or soon if it has passed."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> TimerHandle:
        """Run the callback after what the event loop has at hand."""
        ...


class LoopClock:
    """The running event loop's own clock."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self._loop = loop

    def call_at(self, when_s: float, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock.call_at`."""
        return self._loop.call_at(when_s, callback)

    def call_soon(self, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock.call_soon`."""
        return self._loop.call_soon(callback)

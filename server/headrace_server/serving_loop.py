"""The event loop of a process that serves: asyncio's, with timers in time and two more moments."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from headrace_server.awake import AwakeWaiting

NEAR_S = 0.002
"""epoll counts whole milliseconds, and Python rounds them up: timers were 0.3 to 1 ms late. The
last of a wait is left to select, which counts microseconds (they are 0.13 to 0.27 ms late now).
That takes two calls in place of one, so it is only done for what epoll cannot do."""

MOST_FILES = 1024
"""Numbers of files that select knows end here (FD_SETSIZE)."""

Callback = Callable[[], object]


class Handle(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None:
        """Never run it. Safe to call at any time."""
        ...


class _Last:
    """A callback for the end of the turn."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Selector(selectors.DefaultSelector):
    """Waits for files like any other; before that it runs what is to end a turn of the loop, and
    tells those who asked when it is idle."""

    def __init__(self, run: Callable[[Callback], None]) -> None:
        super().__init__()
        self.last: list[_Last] = []
        self.waiting_for_idle: list[Callback] = []
        self._run = run
        self._waiting = AwakeWaiting()
        # An epoll file can itself be waited for; by select, if its number is small enough.
        number = self.fileno() if isinstance(self, selectors.EpollSelector) else MOST_FILES
        self._epoll = number if number < MOST_FILES else None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The files that are ready, after `timeout` seconds at most; None waits as long as it
        takes."""
        if self.last:
            last, self.last = self.last, []
            for entry in last:
                if entry.callback is not None:
                    self._run(entry.callback)
            # Whatever timeout was asked for, they may have made it a wrong one.
            return super().select(0)
        # The loop has time to wait only when none of its callbacks is left to run.
        may_wait = timeout is None or timeout > 0
        if not may_wait:
            return super().select(timeout)
        if not self.waiting_for_idle:
            return self._waiting.wait(self._select_in_time, timeout)
        events = super().select(0)
        if not events:
            waiting, self.waiting_for_idle = self.waiting_for_idle, []
            for callback in waiting:
                callback()
        return events

    def _select_in_time(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """The same as `select`, and no later than asked for, see `NEAR_S`."""
        if not timeout or self._epoll is None:
            return super().select(timeout)
        until_s = monotonic() + timeout
        if timeout > NEAR_S and (events := super().select(timeout - NEAR_S)):
            return events
        select.select((self._epoll,), (), (), max(0.0, until_s - monotonic()))
        return super().select(0)


class ServingLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, with an end to its turns, and idleness."""

    def __init__(self) -> None:
        self._files = _Selector(self._run_last)
        super().__init__(self._files)

    def call_last(self, callback: Callback) -> Handle:
        """Run the callback at the end of this turn: after all that was at hand when it began, and
        before the loop looks at its files. `call_soon` has it look first, and go round once more.
        """
        entry = _Last(callback)
        self._files.last.append(entry)
        return entry

    def call_when_idle(self, callback: Callback) -> None:
        """Run the callback when no other one is left to run and no file is ready.

        That costs one more look at the files. While the loop is never idle it is not run.
        """
        self._files.waiting_for_idle.append(lambda: self.call_soon(callback))

    def _run_last(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            message = f"a callback at the end of a turn failed: {callback!r}"
            self.call_exception_handler({"message": message, "exception": error})


def call_last_of(loop: asyncio.AbstractEventLoop) -> Callable[[Callback], Handle]:
    """What runs a callback at the end of a turn of this loop; soon after, where it cannot tell."""
    return loop.call_last if isinstance(loop, ServingLoop) else loop.call_soon

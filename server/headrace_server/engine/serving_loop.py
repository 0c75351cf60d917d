"""The event loop of a process that serves: asyncio's own, which also tells when it is idle."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable

Callback = Callable[[], object]


class _Selector(selectors.DefaultSelector):
    """Waits for files like any other; before that it tells those who asked to be told."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting_for_idle: list[Callback] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The files that are ready, after `timeout` seconds at most; None waits as long as it
        takes."""
        # The loop has time to wait only when none of its callbacks is left to run.
        may_wait = timeout is None or timeout > 0
        if not (self.waiting_for_idle and may_wait):
            return super().select(timeout)
        events = super().select(0)
        if not events:
            waiting, self.waiting_for_idle = self.waiting_for_idle, []
            for callback in waiting:
                callback()
        return events


class ServingLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, and one more moment at which it runs something."""

    def __init__(self) -> None:
        self._files = _Selector()
        super().__init__(self._files)

    def call_when_idle(self, callback: Callback) -> None:
        """Run the callback when no other one is left to run and no file is ready.

        That costs one more look at the files. While the loop is never idle it is not run.
        """
        self._files.waiting_for_idle.append(lambda: self.call_soon(callback))

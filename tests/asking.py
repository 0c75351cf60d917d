"""Calls whose ends tests await."""

from __future__ import annotations

import asyncio
from typing import Any

from headrace_server.core.errors import ServingError
from headrace_server.engine.calls import Answer, Call
from headrace_server.engine.serving import Served


class FutureWaiter:
    """A `Waiter` whose future brings the end."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answered(self, answer: Answer) -> None:
        """See `Waiter`."""
        if not self.future.cancelled():
            self.future.set_result(answer)

    def refused(self, error: ServingError) -> None:
        """See `Waiter`."""
        if not self.future.cancelled():
            self.future.set_exception(error)


def submit(served: Served, call: Call) -> tuple[Any, asyncio.Future[Answer]]:
    """Submit a call; returns its ticket and its end, also where its end is that the scheduler
    refuses it at once. Raises `ServingError` for a call that it never gets to see."""
    waiter, ticket = FutureWaiter(), None
    try:
        ticket = served.submit(call, waiter)
    except ServingError as error:
        if not error.counted:
            raise
        waiter.refused(error.with_traceback(None))
    return ticket, waiter.future


async def infer(served: Served, call: Call) -> Answer:
    """Answer a call; it is cancelled with whoever awaits this. Raises `ServingError`."""
    ticket, end = submit(served, call)
    try:
        return await end
    except asyncio.CancelledError:
        served.cancel(ticket)
        raise

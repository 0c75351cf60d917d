"""A signal is obeyed at whatever moment of the start it comes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from headrace_server.app import Addresses, Server
from headrace_server.cli.serve import ONE_SIGNAL_S, start, stop_at_signals

ADDRESSES = Addresses("127.0.0.1:1", "127.0.0.1:2", "http://127.0.0.1:2/metrics")


class Starting:
    """A server that starts as it is told."""

    def __init__(self, start: Callable[[], Awaitable[Addresses]]) -> None:
        self.start = start
        self.stopped = 0

    async def stop(self) -> None:
        self.stopped += 1


def of(server: Starting) -> Server:
    return cast(Any, server)


@pytest.mark.parametrize("turns", range(6))
async def test_a_signal_in_the_last_turns_of_the_start_is_not_lost(turns: int) -> None:
    async def nearly_done() -> Addresses:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(turns):
            await asyncio.sleep(0)
        return ADDRESSES

    server = Starting(nearly_done)
    stop = stop_at_signals(of(server))
    addresses = await start(of(server), stop)
    async with asyncio.timeout(10):
        await stop.wait()  # what comes next where it started
    assert (addresses, server.stopped) in ((ADDRESSES, 0), (None, 1))


async def test_a_signal_that_is_told_twice_is_one_and_a_later_one_ends_everything() -> None:
    now, killed = 5.0, 0

    class Serving:
        def kill(self) -> None:
            nonlocal killed
            killed += 1

    handlers: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "add_signal_handler", lambda _, handler: handlers.append(handler))
        stop = stop_at_signals(cast(Any, Serving()), lambda: now)
    for handler in handlers:  # as SIGTERM and SIGINT at once
        handler()
        handler()
    assert stop.is_set()
    assert killed == 0
    now += 2 * ONE_SIGNAL_S
    with pytest.raises(SystemExit):
        handlers[0]()
    assert killed == 1


async def test_a_start_that_takes_long_is_given_up() -> None:
    async def never_done() -> Addresses:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(1_000)
        return ADDRESSES

    server = Starting(never_done)
    async with asyncio.timeout(10):
        assert await start(of(server), stop_at_signals(of(server))) is None
    assert server.stopped == 1


async def test_a_start_that_fails_leaves_nothing_running() -> None:
    async def failing() -> Addresses:
        raise OSError("no room")

    server = Starting(failing)
    with pytest.raises(OSError, match="no room"):
        await start(of(server), asyncio.Event())
    assert server.stopped == 1

"""A generator process: `python -m headrace_server.bench.process FD`, started by the fleet.

It takes orders from the connection on the descriptor FD and ends when that is closed.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TypeAlias

from headrace.access import Access
from headrace_server.bench.generator import Generator, IdleSelector
from headrace_server.bench.orders import Begin, Ready, Setup, StepReport, Stop, WindowReport
from headrace_server.bench.transport import TRANSPORTS, Transport

Wire: TypeAlias = "Connection[Ready | WindowReport | StepReport, Setup | Begin | Stop]"
Transports: TypeAlias = Mapping[str, Callable[[str, float, Access], Transport]]


def main(transports: Transports = TRANSPORTS) -> None:
    """Follow orders until the connection is closed."""
    wire: Wire = Connection(int(sys.argv[1]))
    selector = IdleSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(_follow(wire, selector, transports))


async def _follow(wire: Wire, selector: IdleSelector, transports: Transports) -> None:
    begins: asyncio.Queue[Begin] = asyncio.Queue()
    stops: asyncio.Queue[Stop] = asyncio.Queue()
    setup = wire.recv()
    assert isinstance(setup, Setup)
    transport = transports[setup.transport](setup.address, setup.timeout_s, setup.access)
    generator = Generator(setup, transport, selector)
    loop = asyncio.get_running_loop()

    def receive() -> None:
        try:
            order = wire.recv()
        except (EOFError, OSError):  # the latter where it is closed with reports unread
            loop.remove_reader(wire.fileno())
            following.cancel()
            return
        if isinstance(order, Begin):
            begins.put_nowait(order)
        elif isinstance(order, Stop):
            stops.put_nowait(order)

    def report(what: Ready | WindowReport | StepReport) -> None:
        with suppress(OSError):  # whoever is gone is found gone by `receive`
            wire.send(what)

    async def follow() -> None:
        while True:
            begin = await begins.get()
            stop = asyncio.create_task(stops.get())
            report(await generator.run(begin, stop, report))

    following = asyncio.ensure_future(follow())
    loop.add_reader(wire.fileno(), receive)
    # What there is by now stays: for the collector to look through it would be a pause for nothing.
    gc.collect()
    gc.freeze()
    report(Ready())
    try:
        await asyncio.wait([following])
        if not following.cancelled():
            following.result()
    finally:
        await transport.close()


if __name__ == "__main__":
    main()

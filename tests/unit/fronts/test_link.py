"""A link sends what can be sent, and ends when it meets what cannot."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from headrace_server.fronts import frames
from headrace_server.fronts.link import Link

UNSENDABLE = frames.Invalid("caf\udce9", "unknown_model")


class End:
    """One end of a link, and what it was told."""

    def __init__(self, read: Any) -> None:
        self.messages: list[Any] = []
        self.closed = asyncio.Event()
        self.link = Link(read, self.messages.append, lambda _: None, self.closed.set)


async def ends() -> tuple[End, End]:
    loop = asyncio.get_running_loop()
    front, engine = End(frames.read_to_front), End(frames.read_from_front)
    for end, connection in zip((front, engine), socket.socketpair(), strict=True):
        await loop.create_connection(lambda end=end: end.link, sock=connection)
    return front, engine


async def test_what_cannot_be_sent_ends_the_link_for_both_sides() -> None:
    front, engine = await ends()
    front.link.send(frames.Cancel(1))
    await asyncio.sleep(0)
    assert front.link.next_bundle == 2
    front.link.send(UNSENDABLE)
    async with asyncio.timeout(10):
        await front.closed.wait()
        await engine.closed.wait()
    assert engine.messages == [frames.Cancel(1)]
    assert front.link.next_bundle == 2, "what was not sent has no number"
    front.link.send(UNSENDABLE)  # to whoever is gone nothing is sent
    front.link.close()
    engine.link.close()

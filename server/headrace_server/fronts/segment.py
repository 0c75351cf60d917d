"""Tensors in memory that a front and the engine's process share: placed by one, read by the other.

What finds no room, or is so small that it costs less to send, travels in its message.
"""

from __future__ import annotations

from headrace_server.fronts.arena import Arena
from headrace_server.fronts.frames import Contents

NBYTES = 64 << 20
"""Of each front's requests, and of its answers: pages that nobody touches are none."""

PLACED_FROM = 512
"""Bytes. Below that a copy through the socket is cheaper than the books of a block."""


class Segment:
    """The writer's end.

    Args:
        view: the memory; a power of two of bytes.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._arena = Arena(len(view))

    @property
    def blocks(self) -> int:
        """How many tensors lie here."""
        return self._arena.blocks

    def put(self, data: bytes | memoryview) -> Contents:
        """Place a tensor, if it is worth it and there is room."""
        nbytes = len(data)
        if nbytes < PLACED_FROM:
            return bytes(data)
        offset = self._arena.take(nbytes)
        if offset is None:
            return bytes(data)
        self._view[offset : offset + nbytes] = data
        return offset, nbytes

    def free(self, offset: int) -> None:
        """The reader is done with what lies here."""
        self._arena.give_back(offset)


def look_at(view: memoryview, contents: Contents) -> bytes | memoryview | None:
    """What the reader finds, without a copy."""
    if isinstance(contents, tuple):
        offset, nbytes = contents
        return view[offset : offset + nbytes]
    return contents

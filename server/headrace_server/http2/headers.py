"""Header blocks (RFC 7541): read through the hpack library, and written without a table.

A client sends nearly the same block with every request of a connection, most of it as references to
a table. A block that leaves the table as it was means the same each time until the table changes,
so it is decoded once: 0.3 us in place of 26 (hpack 4.1, eight fields).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from hpack import Decoder
from hpack.exceptions import HPACKError

from headrace_server.http2.frames import ErrorCode, Http2Error

MAX_BLOCK_BYTES = 16_384
"""Of one block as it comes. hpack reads numbers of any length in quadratic time: 30 ms for this."""

MAX_LIST_BYTES = 65_536
"""Of one block as it is meant, by the measure of section 4.1: what a bomb of references may become
before the connection ends."""

KEPT_BLOCKS = 8
KEPT_BLOCK_BYTES = 512
"""Of each connection, so that thousands of them cannot fill the memory with what they once said."""

DEFAULT_TABLE = 4_096
"""Bytes of a table whose size nobody has set."""

NO_TABLE = b"\x20"
"""Says that the writer's table has no size from now on, which a smaller one than the default has to
be told, also by a writer that never uses it (section 4.2)."""

Head = TypeVar("Head")
Field = tuple[bytes, bytes]


class HeadReader(Generic[Head]):
    """Reads the header blocks of one connection, in the order in which they come.

    Args:
        interpret: makes of a list of fields what the streams want to know; a pure function.
    """

    def __init__(self, interpret: Callable[[list[Field]], Head]) -> None:
        self._interpret = interpret
        self._decoder = Decoder(MAX_LIST_BYTES)
        self._kept: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """What the block says. Raises `Http2Error`: it cannot be decoded, or is a bomb."""
        known = self._kept.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        entries = table.dynamic_entries
        # Each addition puts a new object in front; one that only makes room leaves fewer. Held, so
        # that no other object can take its place and look like it.
        front, count, size = entries[0] if entries else None, len(entries), table.maxsize
        found = self._interpret(self._fields(block))
        now = entries[0] if entries else None
        if now is not front or len(entries) != count or table.maxsize != size:
            self._kept.clear()
        elif len(block) <= KEPT_BLOCK_BYTES:
            if len(self._kept) >= KEPT_BLOCKS:
                self._kept.clear()
            self._kept[block] = found
        return found

    def read_trailers(self, block: bytes) -> list[Field]:
        """The fields of a block that ends a request. Raises `Http2Error`, as `read` does."""
        self._kept.clear()
        return self._fields(block)

    def _fields(self, block: bytes) -> list[Field]:
        try:
            decoded = self._decoder.decode(block, raw=True)
            return [(bytes(name), bytes(value)) for name, value in decoded]
        # hpack prints indices, and Python prints no number of thousands of digits (ValueError).
        except (HPACKError, ValueError) as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, str(error)) from None


def literal(name: str, value: str | bytes) -> bytes:
    """One field that no table keeps, in plain bytes (section 6.2.2)."""
    data = value.encode() if isinstance(value, str) else value
    return b"\x00" + _string(name.encode()) + _string(data)


def block(*fields: tuple[str, str | bytes]) -> bytes:
    """A block of such fields."""
    return b"".join([literal(name, value) for name, value in fields])


def _string(data: bytes) -> bytes:
    length = len(data)
    if length < 0x7F:
        return bytes((length,)) + data
    encoded, rest = bytearray((0x7F,)), length - 0x7F
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded) + data

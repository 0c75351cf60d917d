"""Puts the messages of a call together from the pieces in which they come."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import grpc
import numpy as np

PREFIX_BYTES = 5
"""Before each message: whether it is compressed, and its length in four bytes."""

PRESIZED_BYTES = 1 << 20
"""Of a message's memory that is taken as soon as its length is known; what is beyond it grows as it
comes, so that nobody takes much memory by saying how much he is going to send."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}

ENCODINGS = ("identity", *_WINDOW_BITS)

Message = bytes | bytearray | memoryview
Data = bytes | memoryview


class MessageError(Exception):
    """What came is no message that the server takes; the call ends with this."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Assembler:
    """The messages of one call.

    Args:
        limit: bytes of one message, and of what a compressed one becomes.
        encoding: of messages that say that they are compressed.
    """

    __slots__ = ("_encoding", "_length", "_limit", "_message", "_missing", "_packed", "_prefix")

    def __init__(self, limit: int, encoding: str) -> None:
        self._limit = limit
        self._encoding = encoding
        self._prefix = b""
        self._message: bytearray | memoryview | None = None
        self._length = self._missing = 0
        self._packed = False

    @property
    def missing(self) -> int:
        """Bytes of the message that has begun which have not come; 0 if none has."""
        return self._missing

    @property
    def empty(self) -> bool:
        """Whether nothing has come of the next message."""
        return self._message is None and not self._prefix

    def extend(self, data: Data, begin: int, end: int) -> bool:
        """Take these bytes where they belong to a message that has begun and do not complete it: as
        nearly all frames of a large one do. Returns whether they were taken."""
        if self._message is None or end - begin >= self._missing:
            return False
        self._fill(self._message, data, begin, end)
        return True

    def feed(self, data: Data, begin: int, end: int) -> Iterator[tuple[Message, int]]:
        """The messages that these bytes complete, each with the bytes that it took to come.

        Raises:
            MessageError: one is too large or cannot be unpacked.
        """
        while begin < end:
            if self._message is None:
                taken = min(end - begin, PREFIX_BYTES - len(self._prefix))
                self._prefix += data[begin : begin + taken]
                begin += taken
                if len(self._prefix) < PREFIX_BYTES:
                    return
                self._begin(self._prefix)
                self._prefix = b""
            assert self._message is not None
            taken = min(end - begin, self._missing)
            self._fill(self._message, data, begin, begin + taken)
            begin += taken
            if not self._missing:
                message, self._message = self._message, None
                size = len(message) + PREFIX_BYTES
                yield (self._unpacked(message) if self._packed else message), size

    def _fill(self, message: bytearray | memoryview, data: Data, begin: int, end: int) -> None:
        filled, size = self._length - self._missing, end - begin
        message[filled : filled + size] = memoryview(data)[begin:end]
        self._missing -= size

    def _begin(self, prefix: bytes) -> None:
        length = int.from_bytes(prefix[1:], "big")
        check_length(length, self._limit)
        self._packed = packed = bool(prefix[0])
        if packed and self._encoding not in _WINDOW_BITS:
            raise MessageError(
                grpc.StatusCode.INTERNAL, "a compressed message in a call without 'grpc-encoding'"
            )
        if length > PRESIZED_BYTES:
            self._message = bytearray(PRESIZED_BYTES)
        else:
            # Not filled with zeros first, as a bytearray is: a twelfth of what 600 kB cost.
            self._message = np.empty(length, np.uint8).data
        self._length = self._missing = length

    def _unpacked(self, message: bytearray | memoryview) -> bytes:
        inflater = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        try:
            data = inflater.decompress(message, self._limit + 1)
        except zlib.error:
            raise MessageError(
                grpc.StatusCode.INTERNAL, f"expected a message packed with {self._encoding}"
            ) from None
        check_length(len(data), self._limit)
        if not inflater.eof:
            raise MessageError(
                grpc.StatusCode.INTERNAL, f"expected a message packed with {self._encoding}"
            )
        return data


def check_length(length: int, limit: int) -> None:
    """Raises `MessageError` for a message longer than the limit."""
    if length > limit:
        raise MessageError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"expected messages of {limit} bytes at most, got {length}",
        )

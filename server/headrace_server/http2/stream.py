"""One stream of a connection: what a protocol above HTTP/2 derives its calls from."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from headrace_server.http2 import frames
from headrace_server.http2.frames import ErrorCode
from headrace_server.http2.patience import PER_CALL, PER_DATA

if TYPE_CHECKING:
    from headrace_server.http2.connection import Connection


class Stream:
    """A stream that the peer has opened, until both sides have ended it.

    The connection tells it what comes, by the methods that end in `received` and by `drained` and
    `closed`; it sends with the others. None of what it sends waits: what flow control holds back
    is kept here, in order, and `unsent_bytes` says how much that is.
    """

    __slots__ = (
        "connection",
        "id",
        "queued",
        "receive_window",
        "remote_ended",
        "send_window",
        "trailers",
        "unsent",
        "unsent_bytes",
    )

    def __init__(self, connection: Connection, id: int, ended: bool) -> None:
        self.connection = connection
        self.id = id
        self.remote_ended = ended
        self.receive_window = frames.DEFAULT_WINDOW
        self.send_window = connection.out.stream_window
        self.unsent: deque[memoryview] | None = None
        self.unsent_bytes = 0
        self.trailers: bytes | None = None
        self.queued = False
        """Whether the connection comes back to it by itself."""

    # -- told by the connection -------------------------------------------------------------

    def data_received(self, data: bytes | memoryview, begin: int, end: int) -> None:
        """These bytes of `data` are the stream's next ones. They are gone when this returns."""

    def end_received(self) -> None:
        """The peer sends no more."""

    def drained(self) -> None:
        """Nothing is held back any more."""

    def closed(self, code: ErrorCode | None) -> None:
        """It is over; with a code if that is not by both sides having ended it.

        CANCEL and the like where the peer has reset it; INTERNAL_ERROR where the connection is
        gone, or has ended it for what its peer did wrong.
        """

    # -- what it sends ----------------------------------------------------------------------

    def send_headers(self, block: bytes) -> None:
        """The first header block."""
        self.connection.out.put_headers(self.id, 0, block)

    def send_data(self, data: bytes | memoryview) -> None:
        """The next bytes, whether or not they may go already."""
        size = len(data)
        out = self.connection.out
        if (
            self.unsent is None
            and size <= self.send_window
            and size <= out.window
            and size <= out.frame_bytes
            and out.writable
        ):
            self._put(data, size)
            return
        if self.unsent is None:
            self.unsent = deque()
        self.unsent.append(memoryview(data))
        self.unsent_bytes += size
        if not self.queued:
            out.resume(self)

    def send_end(self, block: bytes) -> None:
        """The last header block, once everything before it has gone."""
        if self.unsent is None:
            self._end(block)
        else:
            self.trailers = block

    def reset(self, code: ErrorCode) -> None:
        """End the stream at once, with whatever is still held back; `closed` is not called."""
        connection = self.connection
        connection.put_reset(self.id, code)
        self.give_up()
        connection.forget(self)

    # -- inside -----------------------------------------------------------------------------

    def give_up(self) -> None:
        """Nothing of it is sent any more."""
        self.unsent = self.trailers = None
        self.unsent_bytes = 0

    def grant(self, nbytes: int) -> None:
        """Let the peer send so many bytes more."""
        if nbytes > 0 and not self.remote_ended:
            self.receive_window += nbytes
            self.connection.out.put(frames.window_update(self.id, nbytes))

    def send_some(self, at_most: int) -> None:
        """Send what the windows allow of what is held back, and so many bytes at most."""
        out, unsent = self.connection.out, self.unsent
        assert unsent is not None
        sent = 0
        while unsent:
            piece = unsent[0]
            size = min(len(piece), self.send_window, out.window, out.frame_bytes, at_most - sent)
            if size <= 0 < len(piece):
                break
            self._put(piece[:size], size)
            sent += size
            if size == len(piece):
                unsent.popleft()
            else:
                unsent[0] = piece[size:]
        self.unsent_bytes -= sent
        if not unsent:
            self.unsent = None
            if self.trailers is not None:
                self._end(self.trailers)
            else:
                self.drained()

    def _put(self, data: bytes | memoryview, size: int) -> None:
        """Send one frame that the windows allow."""
        connection = self.connection
        out = connection.out
        self.send_window -= size
        out.window -= size
        connection.patience.left += PER_DATA
        out.put(frames.head(size, frames.DATA, 0, self.id))
        out.put(data)

    def _end(self, block: bytes) -> None:
        connection = self.connection
        connection.out.put_headers(self.id, frames.END_STREAM, block)
        self.trailers = None
        if not self.remote_ended:  # nobody reads what is still to come (RFC 9113, section 8.1)
            connection.put_reset(self.id, ErrorCode.NO_ERROR)
        connection.patience.left += PER_CALL
        connection.forget(self)
        self.closed(None)

"""What a connection sends: pieces in their order, and streams that take turns at its windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace_server.http2 import frames
from headrace_server.http2.frames import DEFAULT_WINDOW, ErrorCode, Http2Error
from headrace_server.http2.headers import DEFAULT_TABLE, NO_TABLE

if TYPE_CHECKING:
    from headrace_server.http2.stream import Stream

OUTGOING_BYTES = 256 << 10
"""Put together at a time; what large messages have beyond it stays where it is, uncopied."""

TURN_BYTES = 64 << 10
"""That one stream sends before others that wait have their turn."""

UNTAKEN_BYTES = 1 << 20
"""Of answers to pings and settings that a peer causes and does not read."""


class Outgoing:
    """The sending half of a connection.

    `put` never waits; streams ask `writable` and the windows before they put data, and leave what
    these do not allow to `resume`. Whoever owns the connection sends what `take` gives, and says
    `pause` when it has not gone and `proceed` when it has.

    Args:
        wake: called when the first piece is put where there was none.
    """

    __slots__ = (
        "_bytes",
        "_pieces",
        "_prefix",
        "_waiting",
        "_wake",
        "frame_bytes",
        "paused",
        "stream_window",
        "window",
    )

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.window = DEFAULT_WINDOW
        """Bytes of data that the peer takes on all streams."""
        self.stream_window = DEFAULT_WINDOW
        """What it takes on a stream that begins."""
        self.frame_bytes = frames.DEFAULT_FRAME
        """What it takes in one frame."""
        self.paused = False
        """Whether what was taken last has not gone yet."""
        self._pieces: list[bytes | memoryview] = []
        self._bytes = 0
        self._waiting: deque[Stream] = deque()
        self._prefix = b""

    # -- for streams ------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether more data may be put together now."""
        return not self.paused and self._bytes < OUTGOING_BYTES

    def put(self, data: bytes | memoryview) -> None:
        """Send this, after what was put before."""
        if not self._pieces:
            self._wake()
        self._pieces.append(data)
        self._bytes += len(data)

    def put_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        """Send a header block."""
        if self._prefix:
            block = self._prefix + block
            self._prefix = b""
        if len(block) <= self.frame_bytes:
            flags |= frames.END_HEADERS
            self.put(frames.head(len(block), frames.HEADERS, flags, stream_id) + block)
            return
        # Nothing may come between its parts (RFC 9113, section 6.10), so they are put as one.
        size = self.frame_bytes
        parts = [block[at : at + size] for at in range(0, len(block), size)]
        put = [frames.head(size, frames.HEADERS, flags, stream_id), parts[0]]
        for part in parts[1:-1]:
            put += frames.head(size, frames.CONTINUATION, 0, stream_id), part
        last = parts[-1]
        put += frames.head(len(last), frames.CONTINUATION, frames.END_HEADERS, stream_id), last
        self.put(b"".join(put))

    def resume(self, stream: Stream) -> None:
        """Let a stream send of what it holds back, now or as soon as the connection may."""
        if stream.send_window > 0 or not stream.unsent_bytes:
            stream.queued = True
            self._waiting.append(stream)
            self._serve_waiting()

    # -- what the peer allows ---------------------------------------------------------------

    def widen(self, increment: int) -> None:
        """The peer takes so many bytes more. Raises `Http2Error` where that is too many."""
        self.window = checked_window(self.window + increment)
        self._serve_waiting()

    def limit_table(self, size: int) -> None:
        """The peer keeps header fields of so many bytes for later reference. We refer to none, but
        have to say so where it keeps less than at first (RFC 7541, section 4.2)."""
        if size < DEFAULT_TABLE:
            self._prefix = NO_TABLE

    def check_read(self) -> None:
        """Raises `Http2Error` where the peer lets answers to what it sends pile up."""
        if self.paused and self._bytes > UNTAKEN_BYTES:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "answers to pings that nobody reads")

    # -- for whoever owns the connection ----------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether something is put together."""
        return bool(self._pieces)

    def take(self) -> bytes:
        """Everything that was put together; streams put together more at once."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._bytes = 0
        if self._waiting:
            self._serve_waiting()
        return data

    def pause(self) -> None:
        """What was taken waits for the network."""
        self.paused = True

    def proceed(self) -> None:
        """It has gone: streams may put more together."""
        self.paused = False
        self._serve_waiting()

    def abandon(self) -> None:
        """Streams send nothing any more."""
        self._waiting.clear()

    # -- inside -----------------------------------------------------------------------------

    def _serve_waiting(self) -> None:
        waiting = self._waiting
        while waiting and self.writable:
            stream = waiting[0]
            if stream.unsent is None:
                waiting.popleft().queued = False
                continue
            if self.window <= 0 and stream.unsent_bytes:
                return
            waiting.popleft()
            stream.queued = False
            stream.send_some(TURN_BYTES)
            if stream.unsent is not None and stream.send_window > 0:
                stream.queued = True
                waiting.append(stream)


def checked_window(size: int) -> int:
    """This size of a window. Raises `Http2Error` where no window may be so large."""
    if size > frames.LARGEST_WINDOW:
        raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window past 2^31-1")
    return size

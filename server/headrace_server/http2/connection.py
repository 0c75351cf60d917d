"""The server's side of one connection: bytes in, streams' bytes out, without input or output.

Whoever owns a `Connection` hands it what the network brought (`receive`), sends what it has put
together (`out.take`) when it was woken, and tells it of time (`tick`) and of the end (`lost`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from headrace_server.http2 import frames
from headrace_server.http2.frames import DEFAULT_WINDOW, ErrorCode, Http2Error
from headrace_server.http2.headers import MAX_BLOCK_BYTES, Field, HeadReader
from headrace_server.http2.outgoing import Outgoing, checked_window
from headrace_server.http2.patience import Patience
from headrace_server.http2.reservations import Reservations
from headrace_server.http2.stream import Stream

RECEIVE_WINDOW = 16 << 20
"""Of a connection, refilled as bytes come: what is bounded is what its streams hold."""

REMEMBERED_RESETS = 1_024
"""Streams whose peer may still send what it had sent before it heard of the end."""

PING_OF_SHUTDOWN = b"shutdown"
PING_OF_LIFE = b"alive?  "

Head = TypeVar("Head")


@dataclass(frozen=True, slots=True)
class Application(Generic[Head]):
    """What is spoken over the streams.

    Args:
        interpret: makes of header fields what `open` is given.
        open: makes the stream of a request, and enters it in the connection's `streams`; told the
            connection, the stream's id, what its headers say, and whether that is all of it.
        max_streams: at the same time, of one connection; None for no limit.
    """

    interpret: Callable[[list[Field]], Head]
    open: Callable[[Connection, int, Head, bool], None]
    max_streams: int | None


class Connection:
    """One connection from its first byte to its last.

    Args:
        wake: called when there is something to send that was not put together in `receive`.
    """

    def __init__(self, application: Application[Head], wake: Callable[[], None]) -> None:
        self._application = application
        self._heads = HeadReader(application.interpret)
        self.out = Outgoing(wake)
        self.patience = Patience()
        self.reservations = Reservations()
        self.streams: dict[int, Stream] = {}
        self._receive_window = RECEIVE_WINDOW
        self._last_stream = 0
        self._refuse_above: int | None = None
        self.greeted = False
        """Whether the peer has said what a client of HTTP/2 says first."""
        self._settled = False
        self.ended = False
        """Nothing more is taken; what is put together is still to be sent."""
        self._rest = bytearray()
        self._needed = 0
        self._data_left = 0
        self._data_stream: Stream | None = None
        self._data_ends = False
        self._block: bytearray | None = None
        self._block_stream = self._block_flags = 0
        self._awaiting_pong = False
        self._resets: dict[int, None] = {}
        limits = {frames.MAX_HEADER_LIST_SIZE: MAX_BLOCK_BYTES}
        if application.max_streams is not None:
            limits[frames.MAX_CONCURRENT_STREAMS] = application.max_streams
        more = RECEIVE_WINDOW - DEFAULT_WINDOW
        self.out.put(frames.settings(limits) + frames.window_update(0, more))

    # -- in ---------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview) -> None:
        """These bytes came next. Nothing of a view is kept."""
        if self.ended:
            return
        try:
            self._receive(data)
        except Http2Error as error:
            self.fail(error.code, error.text)

    def _receive(self, data: bytes | memoryview) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        position, size = 0, len(data)
        if not self.greeted:
            if data[: len(frames.PREFACE)] != frames.PREFACE[:size]:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "expected HTTP/2's preface")
            if size < len(frames.PREFACE):
                self._keep(data, len(frames.PREFACE))
                return
            position = len(frames.PREFACE)
            self.greeted = True
        unpack = frames.HEAD.unpack_from
        while True:
            if self._data_left:
                position = self._more_data(data, position, size)
            if size - position < frames.HEAD_BYTES:
                if position < size:
                    self._keep(data[position:], frames.HEAD_BYTES)
                return
            high, low, kind, flags, stream_id = unpack(data, position)
            length = high << 8 | low
            begin = position + frames.HEAD_BYTES
            end = begin + length
            if length > frames.DEFAULT_FRAME:
                raise Http2Error(
                    ErrorCode.FRAME_SIZE_ERROR,
                    f"expected frames of {frames.DEFAULT_FRAME} bytes at most, got {length}",
                )
            if not self._settled:
                if kind != frames.SETTINGS or flags & frames.ACK:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, "expected SETTINGS first")
                self._settled = True
            if kind == frames.DATA and not flags & frames.PADDED and self._block is None:
                self._begin_data(stream_id & frames.LARGEST_STREAM, flags, length)
                position = begin
                if not length and self._data_stream is not None:
                    self._end_data()
                continue
            if end > size:
                self._keep(data[position:], frames.HEAD_BYTES + length)
                return
            if kind == frames.HEADERS and flags & 0x2C == frames.END_HEADERS:
                if self._block is not None:
                    raise _not_continued()
                self._head(stream_id & frames.LARGEST_STREAM, flags, bytes(data[begin:end]))
            else:
                payload = bytes(data[begin:end])
                self._frame(kind, flags, stream_id & frames.LARGEST_STREAM, payload)
            if self.ended:
                return
            position = end

    def _keep(self, data: bytes | memoryview, needed: int) -> None:
        self._rest += data
        self._needed = needed

    # -- data -------------------------------------------------------------------------------

    def _begin_data(self, stream_id: int, flags: int, length: int) -> None:
        """Count a DATA frame of so many bytes, and say whose the bytes that follow are."""
        self._receive_window -= length
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")
        if self._receive_window < RECEIVE_WINDOW // 2:
            self.out.put(frames.window_update(0, RECEIVE_WINDOW - self._receive_window))
            self._receive_window = RECEIVE_WINDOW
        self._data_left = length
        self._data_ends = bool(flags & frames.END_STREAM)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._late(stream_id, "DATA")
        elif stream.remote_ended:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            stream = None
        elif length > stream.receive_window:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
            stream = None
        else:
            stream.receive_window -= length
            if not length and not self._data_ends:
                self._spend()
        self._data_stream = stream

    def _more_data(self, data: bytes | memoryview, position: int, size: int) -> int:
        """Hand on what there is of the frame; returns where it ends."""
        end = min(size, position + self._data_left)
        if end > position:
            self._data_left -= end - position
            if self._data_stream is not None:
                self._data_stream.data_received(data, position, end)
        if not self._data_left and self._data_stream is not None:
            self._end_data()
        return end

    def _end_data(self) -> None:
        stream, self._data_stream = self._data_stream, None
        # What came may have made it end by itself.
        if self._data_ends and stream is not None and self.streams.get(stream.id) is stream:
            self._remote_end(stream)

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_ended = True
        stream.end_received()

    def _padded_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        begin, end = _unpadded(flags, payload)
        self._begin_data(stream_id, flags, len(payload))
        self._data_left = 0
        stream = self._data_stream
        if stream is not None:
            if end > begin:
                stream.data_received(payload, begin, end)
            elif not self._data_ends:
                self._spend()
            # The padding is nobody's to read, so nobody else makes room for more of it.
            if self._data_stream is stream:
                stream.grant(len(payload) - (end - begin))
                self._end_data()

    # -- headers ----------------------------------------------------------------------------

    def _head(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block."""
        if len(block) > MAX_BLOCK_BYTES:
            raise Http2Error(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"expected header blocks of {MAX_BLOCK_BYTES} bytes at most, got {len(block)}",
            )
        ended = bool(flags & frames.END_STREAM)
        if stream_id <= self._last_stream:
            self._trailers(stream_id, ended, self._heads.read_trailers(block))
            return
        head = self._heads.read(block)
        if not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not the client's")
        limit, last = self._application.max_streams, self._refuse_above
        self._last_stream = stream_id
        if (limit is not None and len(self.streams) >= limit) or (
            last is not None and stream_id > last
        ):
            self._spend()
            self.put_reset(stream_id, ErrorCode.REFUSED_STREAM)
        else:
            self._application.open(self, stream_id, head, ended)

    def _trailers(self, stream_id: int, ended: bool, fields: list[Field]) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self._late(stream_id, "HEADERS")
            if not ended:
                text = f"HEADERS on stream {stream_id}, which has ended"
                raise Http2Error(ErrorCode.STREAM_CLOSED, text)
        elif stream.remote_ended:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
        elif not ended or any(name[:1] == b":" for name, _ in fields):
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._remote_end(stream)

    def _begin_block(self, flags: int, stream_id: int, payload: bytes) -> None:
        begin, end = _unpadded(flags, payload)
        if flags & frames.WITH_PRIORITY:
            if end - begin < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without its priority")
            if (
                int.from_bytes(payload[begin : begin + 4], "big") & frames.LARGEST_STREAM
                == stream_id
            ):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
            begin += 5
        if flags & frames.END_HEADERS:
            self._head(stream_id, flags, payload[begin:end])
        else:
            self._block = bytearray(payload[begin:end])
            self._block_stream, self._block_flags = stream_id, flags

    def _continue_block(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream_id != self._block_stream:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._spend(16)  # a block takes one or two
        block += payload
        if len(block) > MAX_BLOCK_BYTES:
            raise Http2Error(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"expected header blocks of {MAX_BLOCK_BYTES} bytes at most",
            )
        if flags & frames.END_HEADERS:
            self._block = None
            self._head(stream_id, self._block_flags, bytes(block))

    # -- everything else --------------------------------------------------------------------

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise _not_continued()
        match kind:
            case frames.DATA:
                self._padded_data(flags, stream_id, payload)
            case frames.HEADERS:
                self._begin_block(flags, stream_id, payload)
            case frames.CONTINUATION:
                self._continue_block(flags, stream_id, payload)
            case frames.WINDOW_UPDATE:
                self._window_update(stream_id, payload)
            case frames.RST_STREAM:
                self._rst_stream(stream_id, payload)
            case frames.SETTINGS:
                self._settings(flags, stream_id, payload)
            case frames.PING:
                self._ping(flags, stream_id, payload)
            case frames.PRIORITY:
                self._spend()
                if not stream_id:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY of no stream")
                if len(payload) != 5:
                    raise _wrong_size("PRIORITY", 5, payload)
            case frames.PUSH_PROMISE:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a client that pushes")
            case frames.GOAWAY:
                if stream_id:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
                if len(payload) < 8:
                    raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
                self._spend()
            case _:
                self._spend()  # extensions are ignored (section 5.5)

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _wrong_size("WINDOW_UPDATE", 4, payload)
        increment = int.from_bytes(payload, "big") & frames.LARGEST_WINDOW
        self._spend()
        if not stream_id:
            if not increment:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            self.out.widen(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id, "WINDOW_UPDATE")
        elif not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.send_window += increment
            if stream.send_window > frames.LARGEST_WINDOW:
                self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
            elif stream.unsent is not None and not stream.queued:
                self.out.resume(stream)

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _wrong_size("RST_STREAM", 4, payload)
        self._spend()
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id, "RST_STREAM")
            return
        self.forget(stream)
        stream.give_up()
        stream.closed(_code(int.from_bytes(payload, "big")))

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise _wrong_size("SETTINGS' acknowledgement", 0, payload)
            return
        if len(payload) % 6:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        self._spend()
        for setting, value in struct.iter_unpack(">HI", payload):
            if setting == frames.INITIAL_WINDOW_SIZE:
                self._peer_window(value)
            elif setting == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME <= value <= frames.LARGEST_FRAME:
                    raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"frames of {value} bytes")
                self.out.frame_bytes = value
            elif setting == frames.HEADER_TABLE_SIZE:
                self.out.limit_table(value)
            elif setting == frames.ENABLE_PUSH and value > 1:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"{value} for ENABLE_PUSH")
        self.out.put(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.out.check_read()

    def _peer_window(self, value: int) -> None:
        checked_window(value)
        change = value - self.out.stream_window
        self.out.stream_window = value
        if not change:
            return
        self._spend(len(self.streams) // 8)
        for stream in [*self.streams.values()]:
            stream.send_window = checked_window(stream.send_window + change)
            if change > 0 and stream.unsent is not None and not stream.queued:
                self.out.resume(stream)

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise _wrong_size("PING", 8, payload)
        self._spend()
        if not flags & frames.ACK:
            self.out.put(frames.frame(frames.PING, frames.ACK, 0, payload))
            self.out.check_read()
        elif payload == PING_OF_LIFE:
            self._awaiting_pong = False
        elif payload == PING_OF_SHUTDOWN and self._refuse_above == frames.LARGEST_STREAM:
            self._refuse_above = self._last_stream
            self.out.put(frames.goaway(self._last_stream, ErrorCode.NO_ERROR))
            self._end_if_done()

    def _check_known(self, stream_id: int, what: str) -> None:
        """Of a stream that is not there: fine if it was."""
        if stream_id > self._last_stream or not stream_id & 1:
            raise Http2Error(
                ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, never opened"
            )

    def _late(self, stream_id: int, what: str) -> None:
        """What came is of a stream that has ended: fine if the peer cannot have known yet."""
        self._check_known(stream_id, what)
        self._spend()
        if stream_id not in self._resets:
            self.put_reset(stream_id, ErrorCode.STREAM_CLOSED)

    def _spend(self, amount: int = 1) -> None:
        if not self.patience.spend(amount):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _stream_error(self, stream: Stream, code: ErrorCode) -> None:
        self._spend()
        stream.reset(code)
        stream.closed(ErrorCode.INTERNAL_ERROR)

    # -- for streams ------------------------------------------------------------------------

    def put_reset(self, stream_id: int, code: ErrorCode) -> None:
        """Send a reset, and remember that it was."""
        self._resets[stream_id] = None
        if len(self._resets) > REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]
        self.out.put(frames.rst_stream(stream_id, code))

    def forget(self, stream: Stream) -> None:
        """The stream is over on both sides."""
        self.streams.pop(stream.id, None)
        if self._data_stream is stream:
            self._data_stream = None
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self.streams and self._refuse_above not in (None, frames.LARGEST_STREAM):
            self.ended = True

    # -- life -------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """So much time has passed."""
        self.patience.pass_time(seconds)

    def ping(self) -> None:
        """Ask the peer whether it is there."""
        self._awaiting_pong = True
        self.out.put(frames.frame(frames.PING, 0, 0, PING_OF_LIFE))

    @property
    def awaiting_pong(self) -> bool:
        """Whether the last `ping` has not been answered."""
        return self._awaiting_pong

    def shut_down(self) -> None:
        """Take no more streams, and end with the last one that there is (section 6.8).

        Streams that the peer has opened meanwhile are still taken; it has heard of the end when it
        answers a ping.
        """
        if self._refuse_above is not None or self.ended:
            return
        if not self.streams:
            self._refuse_above = self._last_stream
            self.out.put(frames.goaway(self._last_stream, ErrorCode.NO_ERROR))
            self.ended = True
            return
        self._refuse_above = frames.LARGEST_STREAM
        self.out.put(
            frames.goaway(frames.LARGEST_STREAM, ErrorCode.NO_ERROR)
            + frames.frame(frames.PING, 0, 0, PING_OF_SHUTDOWN)
        )

    def fail(self, code: ErrorCode, text: str) -> None:
        """End the connection, and its streams, for what the peer did."""
        if self.ended:
            return
        self.ended = True
        self.out.put(frames.goaway(self._last_stream, code, text))
        self.lost()

    def lost(self) -> None:
        """The connection is gone, and with it everything on it."""
        self.ended = True
        streams, self.streams = self.streams, {}
        self.out.abandon()
        for stream in streams.values():
            stream.give_up()
            stream.closed(ErrorCode.INTERNAL_ERROR)


def _unpadded(flags: int, payload: bytes) -> tuple[int, int]:
    """Where the content of a padded frame begins and ends (section 6.1)."""
    if not flags & frames.PADDED:
        return 0, len(payload)
    if not payload:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a padded frame of no length")
    end = len(payload) - payload[0]
    if end < 1:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return 1, end


def _code(value: int) -> ErrorCode:
    return ErrorCode(value) if value <= max(ErrorCode) else ErrorCode.INTERNAL_ERROR


def _not_continued() -> Http2Error:
    return Http2Error(ErrorCode.PROTOCOL_ERROR, "expected CONTINUATION")


def _wrong_size(what: str, expected: int, payload: bytes) -> Http2Error:
    return Http2Error(
        ErrorCode.FRAME_SIZE_ERROR, f"expected {expected} bytes of {what}, got {len(payload)}"
    )

"""One call: its messages in and out, its end, and its caller's going away."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from headrace_server.http2.connection import Connection
from headrace_server.http2.frames import DEFAULT_WINDOW, ErrorCode
from headrace_server.http2.headers import block
from headrace_server.http2.stream import Stream
from headrace_server.rpc.assembly import PREFIX_BYTES, Assembler, Data, Message, MessageError
from headrace_server.rpc.head import Head, Metadata, percent_encoded, trailer
from headrace_server.rpc.method import Deserializer, Method

if TYPE_CHECKING:
    from headrace_server.rpc.server import RpcApplication

log = logging.getLogger("headrace.rpc")

EOF: Final = object()
"""What `Call.read` gives when the caller sends no more, or is gone."""

GRANTED_BYTES = DEFAULT_WINDOW // 4
"""Taken before a caller is told that it may send as much again."""

SPLIT_BYTES = 16_384
"""From this size on a message is not copied behind its prefix."""

_HEAD: Final = block((":status", "200"), ("content-type", "application/grpc"))
_OK: Final = block(("grpc-status", "0"))


class AbortedError(Exception):
    """Ends a method whose call was ended by `Call.abort`."""


class Call(Stream):
    """A call as the method that serves it sees it."""

    __slots__ = (
        "__weakref__",
        "_application",
        "_asked",
        "_assembler",
        "_callbacks",
        "_came",
        "_deadline_s",
        "_extra",
        "_head_sent",
        "_metadata_out",
        "_progress",
        "_read_waiter",
        "_ready",
        "_taken",
        "_task",
        "_timer",
        "_write_waiter",
        "context",
        "head",
        "loop",
        "method",
        "over",
        "peer_name",
    )

    def __init__(
        self,
        application: RpcApplication,
        connection: Connection,
        id: int,
        head: Head,
        ended: bool,
        peer: str,
    ) -> None:
        super().__init__(connection, id, ended)
        self._application = application
        self.head = head
        self.method: Method | None = None
        self.peer_name = peer
        self.context: contextvars.Context | None = None
        """In which whoever serves the call runs; None for the one it is called in."""
        self.over = False
        """Whether the call has ended, or will once what was written has gone."""
        self.loop = loop = application.loop
        self._deadline_s = None if head.timeout_s is None else loop.time() + head.timeout_s
        self._assembler: Assembler | None = None
        self._ready: deque[tuple[Message, int, int]] | None = None
        self._came = self._extra = self._asked = self._taken = 0
        self._head_sent = False
        self._metadata_out: Metadata = ()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._progress: asyncio.TimerHandle | None = None
        self._read_waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._callbacks: Callable[[], object] | list[Callable[[], object]] | None = None

    # -- for the method ---------------------------------------------------------------------

    def peer(self) -> str:
        """Who calls, as gRPC writes it: "ipv4:127.0.0.1:4711"."""
        return self.peer_name

    def invocation_metadata(self) -> Metadata:
        """What the caller sent along, in its order."""
        return self.head.metadata

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, 0 at least; None if it has none."""
        if self._deadline_s is None:
            return None
        return max(0.0, self._deadline_s - self.loop.time())

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Send this with the status."""
        self._metadata_out = tuple(metadata)

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call this once the call is over and all of its answer has gone, or its caller has."""
        if self._callbacks is None:
            self._callbacks = callback
        elif isinstance(self._callbacks, list):
            self._callbacks.append(callback)
        else:
            self._callbacks = [self._callbacks, callback]

    async def read(self) -> Any:
        """The next message; `EOF` after the last one, or once the call is over."""
        while not self._ready:
            if self.over or self.remote_ended:
                return EOF
            self._read_waiter = self.loop.create_future()
            try:
                await self._read_waiter
            finally:
                self._read_waiter = None
        message, size, extra = self._ready.popleft()
        self._make_room(size, extra)
        assert self.method is not None
        return self.method.deserialize(message)

    async def write(self, message: Any) -> None:
        """Send a message, and wait until it has been handed to the network.

        Raises:
            AbortedError: the call is over.
        """
        assert self.method is not None
        if self.over:
            raise AbortedError
        self._send_message(self.method.serialize(message))
        while self.unsent is not None and not self.over:
            self._write_waiter = self.loop.create_future()
            try:
                await self._write_waiter
            finally:
                self._write_waiter = None

    async def abort(
        self,
        code: grpc.StatusCode,
        text: str = "",
        trailers: Sequence[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with this status, and the method with `AbortedError`."""
        self.end(code, text, trailers)
        raise AbortedError

    def answer(self, message: Any) -> None:
        """End the call with this one answer."""
        if self.over:
            return
        assert self.method is not None
        self._send_message(self.method.serialize(message))
        self.end(grpc.StatusCode.OK)

    def end(
        self,
        code: grpc.StatusCode,
        text: str = "",
        trailers: Sequence[tuple[str, str | bytes]] = (),
    ) -> None:
        """End the call with this status, after what was written."""
        if self.over:
            return
        self.over = True
        trailers = (*self._metadata_out, *trailers)
        if code is grpc.StatusCode.OK and not trailers:
            last = _OK
        else:
            number: int = code.value[0]
            last = block(
                ("grpc-status", str(number)),
                *((("grpc-message", percent_encoded(text)),) if text else ()),
                *(trailer(name, value) for name, value in trailers),
            )
        self._release()
        self._wake_reader()
        self.send_end(last if self._head_sent else _HEAD + last)

    # -- told by the connection -------------------------------------------------------------

    def data_received(self, data: Data, begin: int, end: int) -> None:
        """See `Stream`."""
        if self.over:
            return
        size = end - begin
        self._came += size
        if self._assembler is not None and self._assembler.extend(data, begin, end):
            return
        if (
            self._assembler is None
            and size >= PREFIX_BYTES
            and not data[begin]
            and int.from_bytes(data[begin + 1 : begin + PREFIX_BYTES], "big") == size - PREFIX_BYTES
            and size <= self._application.max_message_bytes
        ):
            self._receive(bytes(data[begin + PREFIX_BYTES : end]), size, 0)
            return
        if self._assembler is None:
            self._assembler = Assembler(self._application.max_message_bytes, self.head.encoding)
        try:
            for message, nbytes in self._assembler.feed(data, begin, end):
                if self._asked:
                    self.connection.reservations.forget(self)
                    self._asked = 0
                self._receive(message, nbytes, self._end_of_extra())
                if self.over:
                    return
        except MessageError as error:
            self._fail(error.code, error.text)
            return
        missing = self._assembler.missing
        if missing > self.receive_window and not self._asked and not self._extra:
            self._asked = missing - self.receive_window
            self.connection.reservations.ask(self, self._asked, self._granted)

    def end_received(self) -> None:
        """See `Stream`."""
        if self.over:
            return
        expected = self.head.content_length
        if expected is not None and expected != self._came:
            self.reset(ErrorCode.PROTOCOL_ERROR)
            self.closed(ErrorCode.PROTOCOL_ERROR)
            return
        if self._assembler is not None and not self._assembler.empty:
            self._fail(grpc.StatusCode.INTERNAL, "the last message ends in its middle")
            return
        method = self.method
        assert method is not None
        if method.one_request:
            if not self._ready:
                self._fail(grpc.StatusCode.UNIMPLEMENTED, "expected one message, got none")
            elif method.begin is None:
                self.start()
            elif self.context is None:
                self._begin(method.begin, method.deserialize)
            else:
                self.context.run(self._begin, method.begin, method.deserialize)
        else:
            self._wake_reader()

    def drained(self) -> None:
        """See `Stream`."""
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    def closed(self, code: ErrorCode | None) -> None:
        """See `Stream`."""
        if code is not None:
            self.over = True
            self._release()
            self._ready = None
            self._wake_reader()
            self.drained()
            if self._task is not None:
                self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._application.calls.discard(self)
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            for callback in callbacks if isinstance(callbacks, list) else (callbacks,):
                callback()

    # -- for the server ---------------------------------------------------------------------

    def start(self) -> None:
        """Serve the call in a task of its own."""
        self._task = self.loop.create_task(self._run(), context=self.context)

    def watch_deadline(self) -> None:
        """End the call when its caller's deadline has passed."""
        if self._deadline_s is not None:
            self._timer = self.loop.call_at(self._deadline_s, self._expire)

    def expire(self) -> None:
        """The server gives the call up."""
        self._fail(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

    # -- inside -----------------------------------------------------------------------------

    async def _run(self) -> None:
        assert self.method is not None
        assert self.method.run is not None
        try:
            await self.method.run(self)
            self.end(grpc.StatusCode.OK)
        except AbortedError:
            pass
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except Exception:
            log.exception("a call of %s failed", self.head.method)
            self.end(grpc.StatusCode.UNKNOWN, "the method failed")
        finally:
            self._task = None

    def _begin(self, begin: Callable[[Any, Call], None], deserialize: Deserializer) -> None:
        assert self._ready
        if self._timer is not None:  # who serves it knows how late it may be
            self._timer.cancel()
            self._timer = None
        message, _, extra = self._ready.popleft()
        if extra:
            self.connection.reservations.release(extra)
        try:
            begin(deserialize(message), self)
        except Exception:
            log.exception("a call of %s failed", self.head.method)
            self.end(grpc.StatusCode.UNKNOWN, "the method failed")

    def _expire(self) -> None:
        self._fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")

    def _fail(self, code: grpc.StatusCode, text: str) -> None:
        """End the call, and whoever serves it."""
        self.end(code, text)
        if self._task is not None:
            self._task.cancel()

    def _receive(self, message: Message, size: int, extra: int) -> None:
        if self._ready is None:
            self._ready = deque()
        elif self.method is not None and self.method.one_request and self._ready:
            self._extra += extra  # given back with all the rest
            self._fail(grpc.StatusCode.UNIMPLEMENTED, "expected one message, got more")
            return
        self._ready.append((message, size, extra))
        self._wake_reader()

    def _granted(self, nbytes: int) -> None:
        self._asked = 0
        self._extra = nbytes
        self.grant(nbytes)
        self._watch_progress()

    def _end_of_extra(self) -> int:
        """The room that was had for the message that is coming; it is another's business now."""
        if self._progress is not None:
            self._progress.cancel()
            self._progress = None
        extra, self._extra = self._extra, 0
        return extra

    def _watch_progress(self) -> None:
        stalled_s = self._application.stalled_s
        self._progress = self.loop.call_later(stalled_s, self._look_for_progress, self._came)

    def _look_for_progress(self, came: int) -> None:
        """Nobody may keep others waiting for room that he does not use."""
        if self._came - came < DEFAULT_WINDOW and self.connection.reservations.wanted:
            text = "a large message stalled while others waited for its room"
            self._fail(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        else:
            self._watch_progress()

    def _make_room(self, size: int, extra: int) -> None:
        """A message was taken."""
        if extra:
            self.connection.reservations.release(extra)
        if self.remote_ended:
            return
        self._taken += size - extra
        if self._taken >= GRANTED_BYTES:
            self.grant(self._taken)
            self._taken = 0

    def _release(self) -> None:
        """Nothing that has come is taken any more."""
        if self._asked:
            self.connection.reservations.forget(self)
            self._asked = 0
        extra = self._end_of_extra()
        if self._ready:
            extra += sum(entry[2] for entry in self._ready)
            self._ready.clear()
        if extra:
            self.connection.reservations.release(extra)

    def _wake_reader(self) -> None:
        if self._read_waiter is not None and not self._read_waiter.done():
            self._read_waiter.set_result(None)

    def _send_message(self, data: bytes) -> None:
        if not self._head_sent:
            self._head_sent = True
            self.send_headers(_HEAD)
        prefix = b"\x00" + len(data).to_bytes(4, "big")
        if len(data) < SPLIT_BYTES:
            self.send_data(prefix + data)
        else:
            self.send_data(prefix)
            self.send_data(data)

"""An HTTP/2 client for tests that sends whatever it is told to, valid or not, and reads frames.

gRPC's own clients grant flow control, answer pings and end their calls whether one wants it or not.
This one does so only while it is `obliging`. Names and numbers are those of RFC 9113 and RFC 7541;
requests are gRPC's (PROTOCOL-HTTP2). Headers are sent as literals that no table keeps, unless a
test makes the block itself, so that blocks can be cut, repeated and left out freely.
"""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Types of frames (RFC 9113, 6) and the last one defined; those above are unknown.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

# Flags. Numbers are shared between types.
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITISED = 0x4, 0x8, 0x20

# Settings (6.5.2).
HEADER_TABLE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)

# Error codes (7).
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT = range(5)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(5, 10)
ENHANCE_YOUR_CALM = 0xB

FRAME_BYTES = 16_384
"""The least that SETTINGS_MAX_FRAME_SIZE may be, and so what may always be sent."""

WINDOW = 65_535
"""Of a connection, and of each stream unless settings say otherwise, at the start."""

LARGEST_WINDOW = LAST_STREAM = 2**31 - 1

HANG_S = 20.0
"""Beyond this a server that says nothing hangs: an upper bound, nothing waits for it to pass."""

UNARY, STREAM, HOLD, FAIL, LARGE = (
    f"/test.Echo/{method}" for method in ("Unary", "Stream", "Hold", "Fail", "Large")
)
"""The methods of the echo service; see `wire.echo_server`."""

Fields: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]


class Closed(Exception):  # noqa: N818 - what happened, as Python's own
    """The other side ended the connection."""


class Frame(NamedTuple):
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


# -- bytes to send -------------------------------------------------------------------------------


def frame(
    kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None
) -> bytes:
    """One frame; `length` None tells the truth about the payload's."""
    told = len(payload) if length is None else length
    return struct.pack(">I", told)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def ping(opaque: bytes, flags: int = 0) -> bytes:
    """A PING frame."""
    return frame(PING, flags, 0, opaque)


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def padded(payload: bytes, padding: int, priority: bytes = b"") -> bytes:
    """The payload of a PADDED frame, of one with priority fields too if these are given."""
    return bytes([padding]) + priority + payload + bytes(padding)


def priority_fields(depends_on: int = 0, weight: int = 15) -> bytes:
    """The five bytes of PRIORITY, and of HEADERS with that flag (6.2, 6.3)."""
    return struct.pack(">IB", depends_on, weight)


def header_frames(
    stream: int, block: bytes, *, end: bool = False, sizes: Iterable[int] = ()
) -> bytes:
    """A block as HEADERS and as many CONTINUATION frames as it takes; `sizes` cuts the first."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(block[at : at + size])
        at += size
    while at < len(block) or not pieces:
        pieces.append(block[at : at + FRAME_BYTES])
        at += FRAME_BYTES
    out = []
    for index, piece in enumerate(pieces):
        flags = END_HEADERS if index == len(pieces) - 1 else 0
        kind = CONTINUATION if index else HEADERS
        out.append(frame(kind, flags | (END_STREAM if end and not index else 0), stream, piece))
    return b"".join(out)


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """An integer with a prefix of so many bits, the others of its first byte as given
    (RFC 7541, 5.1)."""
    largest = (1 << bits) - 1
    if value < largest:
        return bytes([first | value])
    rest, out = value - largest, [first | largest]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def string(value: str | bytes) -> bytes:
    """A string without Huffman coding (RFC 7541, 5.2)."""
    data = value.encode() if isinstance(value, str) else value
    return integer(len(data), 7) + data


def literal(name: str | bytes, value: str | bytes) -> bytes:
    """A field as a literal that no table keeps (RFC 7541, 6.2.2)."""
    return b"\x00" + string(name) + string(value)


def literals(fields: Fields) -> bytes:
    """A block of such fields."""
    return b"".join(literal(*item) for item in fields)


def request(
    path: str = UNARY,
    *extra: tuple[str | bytes, str | bytes],
    without: Iterable[str] = (),
    **changed: str,
) -> list[tuple[str | bytes, str | bytes]]:
    """The header list of a gRPC request. `changed` replaces values, by names of Python for those
    with colons and dashes: `method="GET"`, `content_type="text/plain"`."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changed.items():
        name = name.replace("_", "-")
        fields[f":{name}" if f":{name}" in fields else name] = value
    return [*(item for item in fields.items() if item[0] not in [*without]), *extra]


def message(body: bytes, compressed: int = 0) -> bytes:
    """A length-prefixed message of gRPC."""
    return struct.pack(">BI", compressed, len(body)) + body


def messages_of(data: bytes) -> list[bytes]:
    """The bodies of uncompressed messages; all of `data` must be such."""
    out, at = [], 0
    while at < len(data):
        compressed, length = struct.unpack_from(">BI", data, at)
        assert compressed == 0
        out.append(data[at + 5 : at + 5 + length])
        assert len(out[-1]) == length, "a message was cut off"
        at += 5 + length
    return out


# -- the connection ------------------------------------------------------------------------------


@dataclass
class Answer:
    """What came on one stream. `reset` is the code of RST_STREAM; `flow` counts what DATA took
    from the windows."""

    blocks: list[list[tuple[str, str]]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    flow: int = 0
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        """Nothing more can come."""
        return self.ended or self.reset is not None

    @property
    def headers(self) -> dict[str, str]:
        """The first header block, fields of one name joined by commas."""
        return _joined(self.blocks[0])

    @property
    def trailers(self) -> dict[str, str]:
        """The last header block, fields of one name joined by commas."""
        return _joined(self.blocks[-1])

    @property
    def messages(self) -> list[bytes]:
        """The bodies of its messages."""
        return messages_of(bytes(self.data))

    @property
    def status(self) -> int:
        """grpc-status."""
        assert self.ended, f"no end but {self}"
        return int(self.trailers["grpc-status"])

    @property
    def refused(self) -> bool:
        """The call ended with an HTTP status of the client's fault, with a status of gRPC that is
        not OK, or with a reset; and without a message."""
        if self.data or not self.over:
            return False
        if not self.blocks or self.reset is not None:
            return self.reset is not None
        http = self.headers[":status"]
        return self.trailers.get("grpc-status") != "0" if http == "200" else http.startswith("4")

    @property
    def body(self) -> bytes:
        """The one message of a unary call that went well."""
        assert self.status == 0, self
        (body,) = self.messages
        return body


class Peer:
    """One connection, that reads only while a test waits for something.

    While `obliging` it acknowledges SETTINGS and PINGs and gives back the windows that DATA took.
    `greet` False sends no preface. What came is in `answers` (by stream), `server` (settings) and
    `goaway`; what may be sent is in `window` and `windows` (by stream).
    """

    def __init__(
        self,
        address: str,
        own_settings: Mapping[int, int] | None = None,
        *,
        greet: bool = True,
        obliging: bool = True,
    ) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=HANG_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.obliging = obliging
        self.frames: list[Frame] = []
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.server: dict[int, int] = {}
        self.settings_acked = 0
        self.pongs: list[bytes] = []
        self.goaway: int | None = None
        self.last_stream: int | None = None
        self.window = WINDOW
        self.windows: defaultdict[int, int] = defaultdict(self._first_window)
        self._next_stream = 1
        self._came = bytearray()
        self._block: bytearray | None = None
        self._block_ends_stream = False
        self.decoder = Decoder(max_header_list_size=1 << 24)
        if greet:
            self.send(PREFACE, settings(own_settings or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    # -- sending ----------------------------------------------------------------------------

    def send(self, *chunks: bytes) -> None:
        """These bytes, in one write."""
        try:
            self.socket.sendall(b"".join(chunks))
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def new_stream(self) -> int:
        """The next number of a stream that a client opens."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        return stream

    def begin(self, fields: Fields | str, *, end: bool = False) -> int:
        """Open a stream with these headers, or those of a call of that path; its number."""
        stream = self.new_stream()
        block = literals(request(fields) if isinstance(fields, str) else fields)
        self.send(header_frames(stream, block, end=end))
        return stream

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """One DATA frame, whether windows allow it or not."""
        self.window -= len(payload)
        self.windows[stream] -= len(payload)
        self.send(frame(DATA, END_STREAM if end else 0, stream, payload))

    def upload(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """As many DATA frames as it takes, as windows allow, reading meanwhile.

        Raises:
            TimeoutError: the windows stay shut.
            Closed: the connection ended.
        """
        at = 0
        while at < len(payload):
            self.read_until(lambda: min(self.window, self.windows[stream]) > 0)
            size = min(FRAME_BYTES, self.window, self.windows[stream], len(payload) - at)
            last = at + size == len(payload)
            self.data(stream, payload[at : at + size], end=end and last)
            at += size

    def open(self, path: str, *bodies: bytes, end: bool = False) -> int:
        """Begin a call with these small messages; the number of its stream."""
        stream = self.begin(path, end=end and not bodies)
        for index, body in enumerate(bodies):
            self.data(stream, message(body), end=end and index == len(bodies) - 1)
        return stream

    def reset(self) -> None:
        """End the connection by RST, as a crashed machine's kernel or a firewall does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # -- reading ----------------------------------------------------------------------------

    def read(self) -> Frame:
        """The next frame.

        Raises:
            Closed: there is none, the connection ended.
            TimeoutError: nothing came for `HANG_S`.
        """
        head = self._take(9)
        length = int.from_bytes(head[:3])
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        taken = Frame(kind, flags, stream & LARGEST_WINDOW, self._take(length))
        self.frames.append(taken)
        self._note(taken)
        return taken

    def read_until(self, done: Callable[[], object]) -> None:
        """Read frames until that holds."""
        while not done():
            self.read()

    def answer(self, stream: int) -> Answer:
        """Read to the end of a stream."""
        self.read_until(lambda: self.answers[stream].over)
        return self.answers[stream]

    def call(
        self, fields: Fields | str, *bodies: bytes, extra: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """A whole call, its messages small, to its end."""
        listed = request(fields) if isinstance(fields, str) else [*fields]
        stream = self.begin([*listed, *extra], end=not bodies)
        for index, body in enumerate(bodies):
            self.data(stream, message(body), end=index == len(bodies) - 1)
        return self.answer(stream)

    def echo(self, body: bytes = b"still here") -> None:
        """Assert that the connection serves a call."""
        assert self.call(UNARY, body).body == body

    def read_flow(self, stream: int, flow: int) -> None:
        """Read until so many bytes of DATA came on a stream."""
        self.read_until(lambda: self.answers[stream].flow >= flow)

    def greeted(self) -> None:
        """Read until the server's settings came and ours are acknowledged."""
        self.read_until(lambda: self.server and self.settings_acked)

    def closed_by_peer(self, timeout_s: float) -> bool:
        """Read what comes, until the peer closes the connection (True) or nothing has come for
        so long (False)."""
        self.socket.settimeout(timeout_s)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    # -- rules ------------------------------------------------------------------------------

    def connection_error(self, *codes: int) -> None:
        """Assert that the server ends the connection, with a GOAWAY of one of these codes or
        without (5.4.1: a GOAWAY may be lost, or left out for a peer that speaks no HTTP/2)."""
        try:
            while True:
                self.read()
        except Closed:
            pass
        except TimeoutError:
            raise AssertionError(f"the connection stays open; GOAWAY: {self.goaway}") from None
        if self.goaway is not None:
            assert self.goaway in codes, f"GOAWAY with {self.goaway} instead of {codes}"

    def stream_error(self, stream: int, *codes: int) -> None:
        """Assert that the server resets the stream with one of these codes, or makes it an error
        of the connection, as it always may (5.4.1)."""
        try:
            self.read_until(lambda: self.answers[stream].over or self.goaway is not None)
        except Closed:
            return
        if self.goaway is not None:
            self.connection_error(*codes)
            return
        assert self.answers[stream].reset in codes, self.answers[stream]

    # -- inside -----------------------------------------------------------------------------

    def _first_window(self) -> int:
        return self.server.get(INITIAL_WINDOW, WINDOW)

    def _take(self, size: int) -> bytes:
        while len(self._came) < size:
            try:
                chunk = self.socket.recv(1 << 20)
            except ConnectionResetError:
                raise Closed from None
            if not chunk:
                raise Closed
            self._came += chunk
        taken = bytes(self._came[:size])
        del self._came[:size]
        return taken

    def _note(self, taken: Frame) -> None:
        kind, flags, stream, payload = taken
        answer = self.answers[stream] if stream else None
        if kind == SETTINGS and flags & ACK:
            self.settings_acked += 1
        elif kind == SETTINGS:
            before = self._first_window()
            self.server.update(struct.iter_unpack(">HI", payload))
            for known in self.windows:
                self.windows[known] += self._first_window() - before
            self._oblige(SETTINGS_ACK)
        elif kind == PING and flags & ACK:
            self.pongs.append(payload)
        elif kind == PING:
            self._oblige(ping(payload, ACK))
        elif kind == GOAWAY:
            last, self.goaway = struct.unpack(">II", payload[:8])
            self.last_stream = last & LARGEST_WINDOW
        elif kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload)
            if answer is None:
                self.window += increment
            else:
                self.windows[stream] += increment
        elif answer is None:
            raise AssertionError(f"{taken} without a stream")
        elif kind == RST_STREAM:
            answer.reset = int.from_bytes(payload)
        elif kind == DATA:
            answer.flow += len(payload)
            answer.data += _unpadded(taken)
            answer.ended = answer.ended or bool(flags & END_STREAM)
            if payload:
                self._oblige(window_update(0, len(payload)))
                if not answer.ended:
                    self._oblige(window_update(stream, len(payload)))
        elif kind in (HEADERS, CONTINUATION):
            if kind == HEADERS:
                assert self._block is None, "HEADERS inside a header block"
                self._block, self._block_ends_stream = bytearray(), bool(flags & END_STREAM)
            assert self._block is not None, "CONTINUATION outside of a header block"
            self._block += _unpadded(taken)
            if flags & END_HEADERS:
                answer.blocks.append(
                    [(_text(name), _text(value)) for name, value in self._decode(self._block)]
                )
                answer.ended = answer.ended or self._block_ends_stream
                self._block = None
        assert self._block is None or kind in (HEADERS, CONTINUATION), "a block was interrupted"

    def _decode(self, block: bytearray) -> Iterable[tuple[str | bytes, str | bytes]]:
        return self.decoder.decode(bytes(block), raw=True)

    def _oblige(self, said: bytes) -> None:
        if self.obliging:
            with suppress(Closed):  # what came before the end can still be read
                self.send(said)


def deaf(address: str, window: int = 0) -> Peer:
    """A caller that greets, grants `window` bytes for each answer, and reads nothing."""
    peer = Peer(address, {INITIAL_WINDOW: window}, obliging=False)
    peer.send(SETTINGS_ACK)
    return peer


def _unpadded(taken: Frame) -> bytes:
    payload = taken.payload
    if taken.kind != CONTINUATION and taken.flags & PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    if taken.kind == HEADERS and taken.flags & PRIORITISED:
        payload = payload[5:]
    return payload


def _text(data: str | bytes) -> str:
    return data if isinstance(data, str) else data.decode("latin-1")


def _joined(fields: list[tuple[str, str]]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in fields:
        out[name] = f"{out[name]},{value}" if name in out else value
    return out

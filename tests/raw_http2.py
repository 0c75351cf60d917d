"""A caller that speaks just enough HTTP/2 to misbehave: never reads, says half of it, or leaves.

gRPC's own clients grant flow control, answer pings and end their calls whether one wants it or not.
Frames and settings are those of RFC 9113; headers are literals without a table (RFC 7541, 6.2.2).
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, CONTINUATION = 0x0, 0x1, 0x4, 0x9
END_HEADERS, ACK, END_STREAM = 0x4, 0x1, 0x1
INITIAL_WINDOW = 0x4
FRAME_BYTES = 16_384

UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class RawConnection:
    """One connection that grants `window` bytes for each answer and reads only when told to."""

    def __init__(self, address: str, window: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10.0)
        self._authority = address
        self._next_stream = 1
        settings = struct.pack(">HI", INITIAL_WINDOW, window)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, ACK, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def open(self, path: str, message: bytes | None = None, **headers: str) -> int:
        """Begin a call, with one message if one is given; returns the number of its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = b"".join(
            literal(name, value)
            for name, value in {
                ":method": "POST",
                ":scheme": "http",
                ":path": path,
                ":authority": self._authority,
                "te": "trailers",
                "content-type": "application/grpc",
                **headers,
            }.items()
        )
        pieces = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
        out = []
        for index, piece in enumerate(pieces):
            kind = CONTINUATION if index else HEADERS
            out.append(frame(kind, END_HEADERS if piece is pieces[-1] else 0, stream, piece))
        self.socket.sendall(b"".join(out))
        if message is not None:
            self.send(stream, message, last=path == UNARY)
        return stream

    def send(self, stream: int, message: bytes, *, last: bool = False) -> None:
        """One more message on a call that is open; small ones only, nobody waits for a window."""
        data = struct.pack(">BI", 0, len(message)) + message
        self.socket.sendall(frame(DATA, END_STREAM if last else 0, stream, data))

    def reset(self) -> None:
        """End the connection by RST, as a crashed machine's kernel or a firewall does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

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


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """One header as a literal that no table keeps."""
    return b"\x00" + text(name) + text(value)


def text(value: str) -> bytes:
    """A string with its length as an integer of seven bits and more (RFC 7541, 5.1)."""
    data = value.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, out = len(data) - 127, [127]
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest]) + data

"""What the headers of a request say: method, deadline, metadata, and what is wrong with them."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

import grpc

from headrace_server.http2.headers import Field

Metadata = tuple[tuple[str, str | bytes], ...]

_UNITS_S = {"H": 3_600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"[0-9]{1,8}[HMSmun]")
_NAME = re.compile(rb"[0-9a-z_.!#$%&'*+^`|~-]+")

_UNFIT = re.compile(rb"[\x00\r\n]")
"""In no value (section 8.2.1). The blanks around one, which it forbids too, are what grpc's clients
send for metadata that has them, and gRPC's document lets a server strip those."""

_OF_THE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""Not allowed in HTTP/2 (RFC 9113, section 8.2.2)."""

_NOT_METADATA = frozenset({b"te", b"content-type", b"content-length"})

MAX_METADATA_BYTES = 16_384
"""Of one call, by the measure of RFC 7541 (section 4.1); gRPC's own servers have the same bound."""

MAX_TEXT_BYTES = 2_000
"""Of a status' text. It travels at three times the length where it is no ASCII, and gRPC's own
clients take 8 KiB of trailers without a doubt."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a call is over before it begins.

    Args:
        http_status: what HTTP is told; 0 if the stream is to be reset as malformed.
        code: what gRPC is told, where `http_status` is 200.
    """

    http_status: int
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    text: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """One request's headers.

    Args:
        method: "/package.Service/Method".
        metadata: in the order in which it came; of names that end in "-bin" the bytes.
        timeout_s: from when the headers came.
        encoding: of compressed messages.
        content_length: bytes that are to come, where the caller has said so.
    """

    method: str
    metadata: Metadata = ()
    timeout_s: float | None = None
    encoding: str = "identity"
    content_length: int | None = None
    problem: Problem | None = None


MALFORMED = Problem(0)


def interpret(fields: list[Field]) -> Head:
    """Read a list of header fields; what is wrong with them becomes the head's `problem`."""
    pseudo: dict[bytes, bytes] = {}
    plain: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    nbytes = 0
    for name, value in fields:
        nbytes += len(name) + len(value) + 32
        if name[:1] == b":":
            if plain or metadata or name in pseudo:
                return Head("", problem=MALFORMED)
            pseudo[name] = value
        elif not _NAME.fullmatch(name) or name in _OF_THE_CONNECTION or not _fit(value):
            return Head("", problem=MALFORMED)
        elif name[:5] == b"grpc-" or name in _NOT_METADATA:
            plain[name] = value
        else:
            try:
                metadata += _metadata(name.decode(), value)
            except ValueError:
                text = f"expected base64 in '{name.decode()}'"
                return Head("", problem=Problem(200, grpc.StatusCode.INTERNAL, text))
    problem, timeout_s = _problem(pseudo, plain), None
    length = plain.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 20):
        problem = MALFORMED
    if problem is None:
        try:
            timeout_s = _timeout_s(plain.get(b"grpc-timeout"))
        except ValueError:
            text = "expected up to eight digits and one of HMSmun in 'grpc-timeout'"
            problem = Problem(200, grpc.StatusCode.INTERNAL, text)
    if problem is None and nbytes > MAX_METADATA_BYTES:
        text = f"expected {MAX_METADATA_BYTES} bytes of metadata at most, got {nbytes}"
        problem = Problem(200, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    return Head(
        pseudo.get(b":path", b"").decode("utf-8", "replace"),
        tuple(metadata),
        timeout_s,
        plain.get(b"grpc-encoding", b"identity").decode("utf-8", "replace"),
        None if problem is not None or length is None else int(length),
        problem,
    )


def percent_encoded(text: str) -> str:
    """As `grpc-message` has it: bytes of UTF-8, those that are no printable ASCII as %XX; clipped
    to `MAX_TEXT_BYTES` before, since texts may quote what the caller sent."""
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}"
        for byte in clipped(text, MAX_TEXT_BYTES).encode()
    )


def clipped(text: str, most_bytes: int) -> str:
    """The text, or as much of it as so many bytes of UTF-8 hold, and three dots."""
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    return data[:most_bytes].decode(errors="ignore") + "..."


def trailer(name: str, value: str | bytes) -> tuple[str, str | bytes]:
    """One field of metadata as it travels."""
    if not name.endswith("-bin"):
        return name, value
    data = value.encode() if isinstance(value, str) else value
    return name, base64.b64encode(data).rstrip(b"=")


def _problem(pseudo: dict[bytes, bytes], plain: dict[bytes, bytes]) -> Problem | None:
    if not pseudo.keys() >= {b":method", b":path", b":scheme"} or not pseudo.keys() <= {
        *(b":method", b":path", b":scheme", b":authority"),
    }:
        return MALFORMED
    if not pseudo[b":path"]:
        return MALFORMED
    if pseudo[b":method"] != b"POST":
        return Problem(405)
    if plain.get(b"te", b"trailers") != b"trailers":
        return MALFORMED
    kind = plain.get(b"content-type", b"")
    if not kind.startswith(b"application/grpc") or kind[16:17] not in (b"", b"+", b";"):
        return Problem(415)
    return None


def _fit(value: bytes) -> bool:
    """Whether a value has none of what HTTP/2 does not let through."""
    return not _UNFIT.search(value)


def _metadata(name: str, value: bytes) -> list[tuple[str, str | bytes]]:
    if not name.endswith("-bin"):
        return [(name, value.strip(b" \t").decode("ascii", "replace"))]
    return [(name, _unpacked(piece)) for piece in value.split(b",")]


def _unpacked(value: bytes) -> bytes:
    value = value.strip().rstrip(b"=")
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        raise ValueError from None


def _timeout_s(value: bytes | None) -> float | None:
    if value is None:
        return None
    text = value.decode("ascii", "replace")
    if not _TIMEOUT.fullmatch(text):
        raise ValueError
    return int(text[:-1]) * _UNITS_S[text[-1]]

"""Inference messages with large contents, read and written without copying those once more.

Protobuf copies bytes into the message it parses, once more for whoever asks for them, and again
when it serialises: three times 16 MiB of a tensor that nobody has looked at. Here raw contents stay
views of what came from the network, and go there straight from where they are. Both the SDK and the
server use it; small messages are protobuf's alone, which is faster at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import Buffer

__all__ = [
    "INFER_METHOD",
    "LARGE_BYTES",
    "LargeMessage",
    "parse_request",
    "parse_response",
    "request_with",
    "response_with",
    "serialized",
]

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"

LARGE_BYTES = 128 << 10
"""Contents from which on it pays: below, protobuf's copies take less than our looking at fields."""

MAX_FIELDS = 1_024
"""Of one message, one after the other in Python; one with more is left to protobuf."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A message of the protocol, and its repeated field of bytes: name and number."""

    message: Any
    field: str
    number: int


_REQUEST = _Kind(pb.ModelInferRequest, "raw_input_contents", 7)
_RESPONSE = _Kind(pb.ModelInferResponse, "raw_output_contents", 6)


class LargeMessage:
    """Stands in for a message of protobuf, and reads like it: only its raw contents lie beside.

    Where protobuf would give `bytes`, these contents are any bytes-like object.
    """

    __slots__ = ("_contents", "_data", "_kind", "_message")

    def __init__(self, kind: _Kind, message: Any, contents: Sequence[Buffer]) -> None:
        self._kind = kind
        self._message = message
        self._contents = contents
        self._data = b""

    def __getattr__(self, name: str) -> Any:
        return self._contents if name == self._kind.field else getattr(self._message, name)

    def ByteSize(self) -> int:
        """As protobuf counts, up to the few bytes around each content."""
        return int(self._message.ByteSize()) + sum(map(_size, self._contents))

    def SerializeToString(self) -> bytes:
        """The bytes on the wire, made once: later changes do not show."""
        if not self._data:
            pieces: list[Buffer] = [self._message.SerializeToString()]
            for content in self._contents:
                pieces += (_varint(self._kind.number << 3 | 2), _varint(_size(content)), content)
            self._data = b"".join(pieces)
        return self._data


def request_with(message: pb.ModelInferRequest, contents: Sequence[Buffer]) -> pb.ModelInferRequest:
    """The request with these raw contents, each of them C-contiguous."""
    return cast("pb.ModelInferRequest", _with(_REQUEST, message, contents))


def response_with(
    message: pb.ModelInferResponse, contents: Sequence[Buffer]
) -> pb.ModelInferResponse:
    """The response with these raw contents, each of them C-contiguous."""
    return cast("pb.ModelInferResponse", _with(_RESPONSE, message, contents))


def parse_request(data: bytes) -> pb.ModelInferRequest:
    """A request from the wire. Raises protobuf's `DecodeError`."""
    return cast("pb.ModelInferRequest", _parse(_REQUEST, data))


def parse_response(data: bytes) -> pb.ModelInferResponse:
    """A response from the wire. Raises protobuf's `DecodeError`."""
    return cast("pb.ModelInferResponse", _parse(_RESPONSE, data))


def serialized(message: Any) -> bytes:
    """The bytes on the wire of a message of either sort."""
    data: bytes = message.SerializeToString()
    return data


def _with(kind: _Kind, message: Any, contents: Sequence[Buffer]) -> Any:
    if sum(map(_size, contents)) >= LARGE_BYTES:
        return LargeMessage(kind, message, contents)
    field = getattr(message, kind.field)
    for content in contents:
        field.append(bytes(content))
    return message


def _parse(kind: _Kind, data: bytes) -> Any:
    if len(data) >= LARGE_BYTES:
        found = _split(data, kind.number)
        if found is not None:
            rest, contents = found
            return LargeMessage(kind, kind.message.FromString(rest), contents)
    return kind.message.FromString(data)


def _split(data: bytes, number: int) -> tuple[bytes, list[memoryview]] | None:
    """A serialised message without the field of this number, and what that field held.

    None for what protobuf should judge: malformed, or with more fields than worth a look.
    """
    view, size = memoryview(data), len(data)
    rest: list[memoryview] = []
    contents: list[memoryview] = []
    position = kept = 0
    try:
        for _ in range(MAX_FIELDS):
            if position == size:
                rest.append(view[kept:])
                return b"".join(rest), contents
            key, end = _read_varint(data, position)
            kind = key & 7
            if kind == 2:
                length, begin = _read_varint(data, end)
                end = begin + length
                if key >> 3 == number and end <= size:
                    rest.append(view[kept:position])
                    contents.append(view[begin:end])
                    kept = end
            elif kind == 0:
                _, end = _read_varint(data, end)
            else:
                end += {1: 8, 5: 4}[kind]
            if end > size:
                return None
            position = end
    except LookupError:  # it ends in the middle, or holds what is no field
        pass
    return None


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at this position, and where it ends. Raises LookupError if there is none."""
    value = shift = 0
    while shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise LookupError


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _size(content: Buffer) -> int:
    return content.nbytes if isinstance(content, memoryview) else len(content)

"""Tensors between numpy and the wire: the codec that the SDK and the server share.

On the wire a tensor is a datatype, a shape and bytes: row-major, little-endian; a BYTES tensor is
one element after the other, each behind its length (4 bytes, little-endian). Nothing here does any
input or output, and nothing but BYTES is ever touched element by element.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.protocol.grpc_service_pb2 import InferTensorContents

__all__ = [
    "DATATYPES",
    "Datatype",
    "TensorError",
    "array_of",
    "check_byte_elements",
    "contents_to_raw",
    "datatype_of",
    "decode_tensor",
    "element_count",
    "encode_tensor",
    "split_byte_elements",
    "tensor_buffer",
]

Array: TypeAlias = npt.NDArray[Any]
Buffer: TypeAlias = bytes | bytearray | memoryview


class TensorError(ValueError):
    """A tensor that is not what it claims to be: the text says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the protocol.

    `itemsize` is in bytes, 0 for BYTES, whose elements have no common size. `numpy` is the dtype
    of decoded arrays in the wire's byte order; None for BF16, which numpy lacks: it decodes to
    float32, which holds every BF16 value exactly.
    """

    name: str
    itemsize: int
    numpy: np.dtype[Any] | None


DATATYPES: Mapping[str, Datatype] = MappingProxyType(
    {
        datatype.name: datatype
        for datatype in (
            Datatype("BOOL", 1, np.dtype("?")),
            Datatype("UINT8", 1, np.dtype("u1")),
            Datatype("UINT16", 2, np.dtype("<u2")),
            Datatype("UINT32", 4, np.dtype("<u4")),
            Datatype("UINT64", 8, np.dtype("<u8")),
            Datatype("INT8", 1, np.dtype("i1")),
            Datatype("INT16", 2, np.dtype("<i2")),
            Datatype("INT32", 4, np.dtype("<i4")),
            Datatype("INT64", 8, np.dtype("<i8")),
            Datatype("FP16", 2, np.dtype("<f2")),
            Datatype("FP32", 4, np.dtype("<f4")),
            Datatype("FP64", 8, np.dtype("<f8")),
            Datatype("BF16", 2, None),
            Datatype("BYTES", 0, np.dtype(object)),
        )
    }
)
"""Every datatype of the protocol, by name."""

_NUMBERS = {
    (known.numpy.kind, known.itemsize): known.name
    for known in DATATYPES.values()
    if known.numpy is not None and known.itemsize > 0
}
# Fixed-width bytes and text, objects, and numpy 2's variable-width text.
_TEXT_KINDS = frozenset("SUOT")
# What a Python value may become: a number turns into one that can say more, never into less.
_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}
_WHOLE = (int, np.integer)
_MEMBERS = {"b": (), "u": _WHOLE, "i": _WHOLE, "f": (*_WHOLE, float, np.floating)}

_LENGTH = struct.Struct("<I")

_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FIELD_DTYPES = {
    "bool_contents": np.dtype(bool),
    "uint_contents": np.dtype(np.uint32),
    "uint64_contents": np.dtype(np.uint64),
    "int_contents": np.dtype(np.int32),
    "int64_contents": np.dtype(np.int64),
    "fp32_contents": np.dtype(np.float32),
    "fp64_contents": np.dtype(np.float64),
}


def datatype_of(array: Array) -> str:
    """Name of the datatype that `array` is sent as; text, bytes and objects are BYTES.

    Raises:
        TensorError: the protocol has no datatype for the array's dtype.
    """
    dtype = array.dtype
    name = _NUMBERS.get((dtype.kind, dtype.itemsize))
    if name is not None:
        return name
    if dtype.kind in _TEXT_KINDS:
        return "BYTES"
    if dtype.name == "bfloat16":  # of the package ml_dtypes, which need not be installed
        return "BF16"
    raise TensorError(f"expected an array of one of {', '.join(DATATYPES)}, got {dtype}")


def array_of(value: object, datatype: str) -> Array:
    """Python numbers, text or bytes, alone or in nested sequences, as an array to send.

    The array has the dtype that `decode_tensor` gives for `datatype`. Whole numbers may become
    floating-point numbers, but not the other way round, and nothing may leave the range.

    Raises:
        TensorError: `value` is ragged, or its elements do not fit `datatype`.
    """
    known = known_datatype(datatype)
    if datatype == "BYTES":
        return np.array(value, dtype=object)
    dtype = known.numpy or np.dtype(np.float32)
    try:
        natural = np.array(value)
    except (TypeError, ValueError) as error:
        raise TensorError(f"expected {datatype} elements in even rows: {error}") from None
    if natural.size == 0:
        return natural.astype(dtype)
    if _RANK.get(natural.dtype.kind, 3) > _RANK[dtype.kind]:
        # For whole numbers that none of its integers can hold together numpy takes floats, or
        # objects: [2**63, 1] and [2**64].
        numbers = np.array(value, dtype=object)
        if not all(isinstance(number, _MEMBERS[dtype.kind]) for number in numbers.flat):
            raise TensorError(f"expected {datatype} elements, got {natural.dtype}")
        natural = numbers
    if dtype.kind in "ui":
        _check_range(natural, datatype, dtype)
    try:
        with np.errstate(over="raise"):
            return natural.astype(dtype)
    except (FloatingPointError, OverflowError):
        raise TensorError(
            f"expected {datatype} elements, got {np.abs(natural).max()}, which is out of range"
        ) from None


def encode_tensor(array: Array, datatype: str | None = None) -> bytes:
    """Bytes of `array` on the wire, whatever its memory layout and byte order.

    `datatype` is by default what `datatype_of` says. The array's dtype must be the one that
    belongs to it, with two liberties: BF16 also takes float32, rounded to the nearest (ties to
    even), and BYTES takes bytes or str elements, the latter as UTF-8. Fixed-width numpy bytes
    (dtype `S`) lose trailing zero bytes, as everywhere in numpy; object arrays do not.

    Raises:
        TensorError: the array's dtype or one of its elements does not belong to `datatype`.

    Example:
        >>> encode_tensor(np.array([1, 2], dtype=np.int16))
        b'\\x01\\x00\\x02\\x00'
        >>> encode_tensor(np.array([b"ab"], dtype=object))
        b'\\x02\\x00\\x00\\x00ab'
    """
    encoded = _encoded(array, datatype)
    return encoded if isinstance(encoded, bytes) else encoded.tobytes()


def tensor_buffer(array: Array, datatype: str | None = None) -> bytes | memoryview:
    """Like `encode_tensor`, but a view of the array where its bytes are those on the wire."""
    encoded = _encoded(array, datatype)
    if isinstance(encoded, bytes):
        return encoded
    return np.ascontiguousarray(encoded).reshape(-1).view(np.uint8).data


def _encoded(array: Array, datatype: str | None) -> bytes | Array:
    """The bytes on the wire, or an array whose elements in order have them."""
    if datatype is None:
        datatype = datatype_of(array)
    dtype = known_datatype(datatype).numpy
    if datatype == "BYTES":
        return _encode_byte_elements(array)
    if dtype is None:
        return _encode_bf16(array)
    if array.dtype.newbyteorder("<") != dtype:
        raise TensorError(f"expected an array of {dtype.name} for {datatype}, got {array.dtype}")
    return array.astype(dtype, copy=False)


def decode_tensor(datatype: str, shape: Sequence[int], buffer: Buffer) -> Array:
    """Array of `shape` from bytes on the wire.

    The array is a read-only view of `buffer` where that is possible, that is, for all but BF16
    (float32, copied) and BYTES (an object array of bytes); use `.copy()` to write to it.

    Raises:
        TensorError: unknown datatype, a negative dimension or more than numpy has, or a buffer
            that does not hold exactly the elements that `shape` asks for.
    """
    known = known_datatype(datatype)
    count = element_count(shape)
    if datatype == "BYTES":
        pieces = split_byte_elements(buffer, count)
        elements = np.empty(count, dtype=object)
        elements[:] = pieces
        return _shaped(elements, shape)
    size = len(buffer) if isinstance(buffer, bytes | bytearray) else buffer.nbytes
    if size != count * known.itemsize:
        raise TensorError(
            f"expected {count * known.itemsize} bytes for {datatype} {list(shape)}, got {size}"
        )
    if known.numpy is None:
        halves = np.frombuffer(buffer, dtype="<u2").astype(np.uint32)
        return _shaped((halves << 16).view(np.float32), shape)
    if datatype == "BOOL":
        return _shaped(_decode_bool(buffer), shape)
    array = _shaped(np.frombuffer(buffer, dtype=known.numpy), shape)
    array.flags.writeable = False
    return array


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of `shape`; 1 for the empty shape.

    Raises:
        TensorError: a dimension is negative.
    """
    if any(dimension < 0 for dimension in shape):
        raise TensorError(f"expected dimensions of at least 0, got {list(shape)}")
    return math.prod(shape)


def split_byte_elements(buffer: Buffer, count: int) -> list[bytes]:
    """The `count` elements of a BYTES tensor, copied out of `buffer`.

    Raises:
        TensorError: `buffer` does not hold exactly `count` elements.
    """
    data = bytes(buffer)
    return [data[start:end] for start, end in _spans(data, count)]


def check_byte_elements(buffer: Buffer, count: int) -> None:
    """Check that `buffer` holds exactly `count` elements of a BYTES tensor; copies nothing.

    Raises:
        TensorError: it does not.
    """
    for _ in _spans(buffer, count):
        pass


def contents_to_raw(datatype: str, contents: InferTensorContents) -> tuple[bytes, int]:
    """Bytes on the wire for a tensor that came as typed numbers, and how many elements it has.

    Raises:
        TensorError: FP16 and BF16, which the protocol sends as bytes only; numbers in a field
            that belongs to another datatype; a number outside the datatype's range.
    """
    known = known_datatype(datatype)
    field = _FIELDS.get(datatype)
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if field is None:
        raise TensorError(f"expected {datatype} elements as raw contents, got typed contents")
    if any(name != field for name in filled):
        raise TensorError(f"expected {datatype} elements in {field}, got {', '.join(filled)}")
    if datatype == "BYTES":
        return _join_byte_elements(contents.bytes_contents), len(contents.bytes_contents)
    elements = getattr(contents, field)
    array = np.fromiter(elements, dtype=_FIELD_DTYPES[field], count=len(elements))
    assert known.numpy is not None
    if array.dtype.itemsize > known.itemsize and array.size > 0:
        _check_range(array, datatype, known.numpy)
    return array.astype(known.numpy, copy=False).tobytes(), array.size


def known_datatype(datatype: str) -> Datatype:
    """The datatype of this name; raises `TensorError` if the protocol has none."""
    known = DATATYPES.get(datatype)
    if known is None:
        raise TensorError(f"expected one of {', '.join(DATATYPES)}, got '{datatype}'")
    return known


def _shaped(array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:  # of no elements, with dimensions whose product nobody can hold
        raise TensorError(f"expected a shape that numpy has, got {list(shape)}: {error}") from None


def _check_range(array: Array, datatype: str, dtype: np.dtype[Any]) -> None:
    limits = np.iinfo(dtype)
    for extreme in (int(array.min()), int(array.max())):
        if not limits.min <= extreme <= limits.max:
            raise TensorError(
                f"expected {datatype} elements from {limits.min} to {limits.max}, got {extreme}"
            )


def _spans(buffer: Buffer, count: int) -> Iterator[tuple[int, int]]:
    size = len(buffer) if isinstance(buffer, bytes | bytearray) else buffer.nbytes
    length_at = _LENGTH.unpack_from
    end = 0
    for index in range(count):
        start = end + 4
        if start > size:
            raise TensorError(f"expected {count} BYTES elements, got {index} in {size} bytes")
        end = start + length_at(buffer, start - 4)[0]
        if end > size:
            raise TensorError(
                f"expected {end - start} bytes in element {index} of {count}, got {size - start}"
            )
        yield start, end
    if end != size:
        raise TensorError(f"expected {count} BYTES elements in {size} bytes, got them in {end}")


def _join_byte_elements(elements: Sequence[bytes]) -> bytes:
    pieces: list[bytes] = []
    for element in elements:
        pieces += (_LENGTH.pack(len(element)), element)
    return b"".join(pieces)


def _encode_byte_elements(array: Array) -> bytes:
    if array.dtype.kind not in _TEXT_KINDS:
        raise TensorError(f"expected an array of bytes or str for BYTES, got {array.dtype}")
    return _join_byte_elements([_as_bytes(element) for element in array.ravel().tolist()])


def _as_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        try:
            return element.encode()
        except UnicodeEncodeError as error:
            raise TensorError(f"expected text that UTF-8 can express: {error}") from None
    raise TensorError(f"expected bytes or str elements for BYTES, got {type(element).__name__}")


def _encode_bf16(array: Array) -> bytes:
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16).astype("<u2", copy=False).tobytes()
    if array.dtype.newbyteorder("<") != np.dtype("<f4"):
        raise TensorError(f"expected an array of float32 or bfloat16 for BF16, got {array.dtype}")
    single = np.ascontiguousarray(array, dtype=np.float32)
    bits = single.view(np.uint32)
    # Adding just under half of the last place kept, plus that place's own bit, rounds to nearest
    # with ties to even. The sum can overflow for NaNs only; they keep their sign and turn quiet.
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(single), quiet, rounded).astype("<u2").tobytes()


def _decode_bool(buffer: Buffer) -> Array:
    values = np.frombuffer(buffer, dtype=np.uint8)
    # numpy's bool is undefined for bytes other than 0 and 1.
    array = values.view(bool) if values.max(initial=0) <= 1 else values != 0
    array.flags.writeable = False
    return array

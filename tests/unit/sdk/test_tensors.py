"""The tensor codec: every datatype comes back as it was sent, and nothing wrong gets through."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.protocol.grpc_service_pb2 import InferTensorContents
from headrace.tensors import (
    DATATYPES,
    TensorError,
    array_of,
    check_byte_elements,
    contents_to_raw,
    datatype_of,
    decode_tensor,
    element_count,
    encode_tensor,
    split_byte_elements,
)

Array = npt.NDArray[Any]

NUMBERS = [name for name, known in DATATYPES.items() if known.numpy is not None and known.itemsize]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Array]:
    datatype = draw(st.sampled_from(NUMBERS))
    dtype = DATATYPES[datatype].numpy
    assert dtype is not None
    return datatype, draw(npst.arrays(dtype, SHAPES))


@given(tensors())
def test_numbers_come_back_bit_for_bit(tensor: tuple[str, Array]) -> None:
    datatype, array = tensor
    raw = encode_tensor(array)
    back = decode_tensor(datatype, array.shape, raw)
    assert datatype_of(array) == datatype
    assert len(raw) == array.size * DATATYPES[datatype].itemsize
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary() | st.text(), max_size=20))
def test_bytes_come_back_and_text_comes_back_as_utf8(elements: list[bytes | str]) -> None:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    expected = [e.encode() if isinstance(e, str) else e for e in elements]
    raw = encode_tensor(array)
    check_byte_elements(raw, len(elements))
    assert decode_tensor("BYTES", array.shape, raw).tolist() == expected
    assert split_byte_elements(memoryview(raw), len(elements)) == expected


def _nearest_bf16(value: float) -> float:
    """The nearest BF16 number by exact arithmetic, ties to the even one; `value` is finite."""
    upper = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    around = [bits for bits in (upper, upper + 1) if bits & 0x7F80 != 0x7F80]
    numbers = {bits: struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in around}
    best = min(around, key=lambda bits: (abs(Fraction(numbers[bits]) - Fraction(value)), bits & 1))
    nearest: float = numbers[best]
    return nearest


@given(st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127))
def test_float32_is_rounded_to_the_nearest_bf16(value: float) -> None:
    raw = encode_tensor(np.array([value], dtype=np.float32), "BF16")
    assert decode_tensor("BF16", [1], raw)[0] == _nearest_bf16(value)


@given(npst.arrays(np.uint16, SHAPES))
def test_bf16_comes_back_bit_for_bit_but_for_signalling_nans(bits: Array) -> None:
    raw = bits.astype("<u2").tobytes()
    array = decode_tensor("BF16", bits.shape, raw)
    assert array.dtype == np.float32
    again = np.frombuffer(encode_tensor(array, "BF16"), dtype="<u2").reshape(bits.shape)
    assert np.array_equal(np.where(np.isnan(array), bits | 0x40, bits), again)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (np.inf, 0x7F80),
        (-np.inf, 0xFF80),
        (np.finfo(np.float32).max, 0x7F80),  # nearer to the number after the greatest
        (-0.0, 0x8000),
    ],
)
def test_bf16_at_the_edges(value: float, bits: int) -> None:
    raw = encode_tensor(np.array(value, dtype=np.float32), "BF16")
    assert raw == struct.pack("<H", bits)


def test_memory_layout_and_byte_order_do_not_matter() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    expected = array[::2, ::-1].tolist()
    for variant in (array, np.asfortranarray(array), array.astype(">i4")):
        raw = encode_tensor(variant[::2, ::-1])
        assert decode_tensor("INT32", (2, 4), raw).tolist() == expected


def test_fixed_width_text_and_bytes_are_bytes() -> None:
    assert datatype_of(np.array(["ä", "bc"])) == "BYTES"
    assert encode_tensor(np.array(["ä"])) == b"\x02\0\0\0" + "ä".encode()
    assert encode_tensor(np.array([b"x"])) == b"\x01\0\0\0x"


def test_decoded_array_is_a_read_only_view() -> None:
    memory = bytearray(8)
    array = decode_tensor("INT32", [2], memory)
    memory[0] = 7
    assert array[0] == 7
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_any_byte_but_zero_is_true() -> None:
    array = decode_tensor("BOOL", [4], b"\x00\x01\x02\xff")
    assert array.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "text"),
    [
        ("FP32", [2], b"1234567", r"expected 8 bytes for FP32 \[2\], got 7"),
        ("FP32", [-1], b"", r"expected dimensions of at least 0, got \[-1\]"),
        ("FP8", [1], b"1", "got 'FP8'"),
        ("BYTES", [2], b"\x01\0\0\0a", "expected 2 BYTES elements, got 1 in 5 bytes"),
        ("BYTES", [1], b"\x05\0\0\0ab", "expected 5 bytes in element 0 of 1, got 2"),
        ("BYTES", [1], b"\x01\0\0\0ab", "expected 1 BYTES elements in 6 bytes, got them in 5"),
        ("BYTES", [0], b"\0", "expected 0 BYTES elements in 1 bytes, got them in 0"),
        ("BYTES", [2**50], b"", "got 0 in 0 bytes"),
        ("BYTES", [0, 2**62, 4], b"", "expected a shape that numpy has, got"),
        ("FP32", [0, 2**62, 4], b"", "expected a shape that numpy has, got"),
        ("BF16", [0] + 99 * [1], b"", "expected a shape that numpy has, got"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(
    datatype: str, shape: list[int], raw: bytes, text: str
) -> None:
    with pytest.raises(TensorError, match=text):
        decode_tensor(datatype, shape, raw)


@pytest.mark.parametrize(
    ("array", "datatype", "text"),
    [
        (np.zeros(1), "FP32", "expected an array of float32 for FP32, got float64"),
        (np.zeros(1), "BF16", "got float64"),
        (np.zeros(1), "BYTES", "expected an array of bytes or str for BYTES, got float64"),
        (np.array([1], dtype=object), "BYTES", "got int"),
        (np.array(["\ud800"]), "BYTES", "expected text that UTF-8 can express"),
        (np.zeros(1, dtype=complex), None, "got complex128"),
        (np.zeros(1), "TEXT", "got 'TEXT'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array: Array, datatype: str | None, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        encode_tensor(array, datatype)


def test_scalar_has_one_element() -> None:
    assert element_count([]) == 1
    assert decode_tensor("INT8", [], encode_tensor(np.int8(-3) + np.zeros((), np.int8))) == -3


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ([[1, 2], [3, 4]], "FP32", np.array([[1, 2], [3, 4]], dtype=np.float32)),
        ([True, False], "UINT8", np.array([1, 0], dtype=np.uint8)),
        ([2**64 - 1], "UINT64", np.array([2**64 - 1], dtype=np.uint64)),
        ([[2**63, 1], [0, 2]], "UINT64", np.array([[2**63, 1], [0, 2]], dtype=np.uint64)),
        ([np.uint64(2**63), True], "UINT64", np.array([2**63, 1], dtype=np.uint64)),
        ([2**64, 0.5], "FP64", np.array([2.0**64, 0.5])),
        ([2**64, 1], "FP32", np.array([2.0**64, 1], dtype=np.float32)),
        (0.5, "BF16", np.array(0.5, dtype=np.float32)),
        ([], "INT64", np.array([], dtype=np.int64)),
        ([float("inf")], "FP16", np.array([np.inf], dtype=np.float16)),
        (["a", b"b\0"], "BYTES", np.array(["a", b"b\0"], dtype=object)),
    ],
)
def test_python_values_take_the_declared_datatype(
    value: object, datatype: str, expected: Array
) -> None:
    array = array_of(value, datatype)
    assert array.dtype == expected.dtype
    assert array.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("value", "datatype", "text"),
    [
        ([1.5], "INT32", "expected INT32 elements, got float64"),
        ([1], "BOOL", "expected BOOL elements, got int64"),
        (["1"], "FP32", "expected FP32 elements, got"),
        ([256], "UINT8", "expected UINT8 elements from 0 to 255, got 256"),
        ([-1], "UINT64", "got -1"),
        ([2**64], "UINT64", f"elements from 0 to {2**64 - 1}, got {2**64}"),
        ([2**63, -1], "UINT64", f"elements from 0 to {2**64 - 1}, got -1"),
        ([2**63, 1], "INT64", f"to {2**63 - 1}, got {2**63}"),
        ([2**63, 1.0], "UINT64", "expected UINT64 elements, got float64"),
        ([2**64, None], "UINT64", "expected UINT64 elements, got object"),
        ([2**63, 1], "BOOL", "expected BOOL elements, got float64"),
        ([2**200], "FP32", "out of range"),
        ([10**400], "FP64", "out of range"),
        ([10**400, 0.5], "FP64", "out of range"),
        ([1e6], "FP16", "out of range"),
        ([[1], [2, 3]], "FP32", "even rows"),
    ],
)
def test_python_values_that_do_not_fit_are_refused(value: object, datatype: str, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        array_of(value, datatype)


TYPED: list[tuple[str, str, list[Any]]] = [
    ("BOOL", "bool_contents", [True, False]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 65535]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("FP32", "fp32_contents", [0.5, float("inf")]),
    ("FP64", "fp64_contents", [0.1, -1e300]),
    ("BYTES", "bytes_contents", [b"", b"a\0"]),
]


@pytest.mark.parametrize(("datatype", "field", "values"), TYPED)
def test_typed_contents_become_the_same_bytes_as_raw_ones(
    datatype: str, field: str, values: list[Any]
) -> None:
    contents = InferTensorContents()
    getattr(contents, field).extend(values)
    raw, count = contents_to_raw(datatype, contents)
    assert count == len(values)
    assert decode_tensor(datatype, [count], raw).tolist() == values
    assert contents_to_raw(datatype, InferTensorContents()) == (b"", 0)


@pytest.mark.parametrize(
    ("datatype", "contents", "text"),
    [
        ("INT8", InferTensorContents(int_contents=[1, 128]), "from -128 to 127, got 128"),
        ("UINT16", InferTensorContents(uint_contents=[65536]), "got 65536"),
        ("FP32", InferTensorContents(int_contents=[1]), "in fp32_contents, got int_contents"),
        ("FP16", InferTensorContents(fp32_contents=[1]), "FP16 elements as raw contents"),
        ("BF16", InferTensorContents(), "BF16 elements as raw contents"),
        ("INT4", InferTensorContents(), "got 'INT4'"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    datatype: str, contents: InferTensorContents, text: str
) -> None:
    with pytest.raises(TensorError, match=text):
        contents_to_raw(datatype, contents)

"""Large messages mean what protobuf says they mean, and their contents are not copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from headrace.large_messages import (
    LARGE_BYTES,
    MAX_FIELDS,
    LargeMessage,
    parse_request,
    parse_response,
    request_with,
    response_with,
)
from headrace.messages import infer_request
from headrace.protocol import grpc_service_pb2 as pb

LARGE = bytes(range(256)) * (LARGE_BYTES // 256)


def request(*contents: bytes) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", id="mine")
    message.parameters["priority"].uint64_param = 3
    for index, content in enumerate(contents):
        message.inputs.add(name=f"x{index}", datatype="UINT8", shape=[len(content)])
        message.raw_input_contents.append(content)
    message.outputs.add(name="y")
    return message


@pytest.mark.parametrize("contents", [(LARGE,), (b"", LARGE, b"small"), (LARGE, LARGE)])
def test_large_request_reads_like_protobufs(contents: tuple[bytes, ...]) -> None:
    original = request(*contents)
    read = parse_request(original.SerializeToString())
    assert isinstance(read, LargeMessage)
    assert [bytes(content) for content in read.raw_input_contents] == [*contents]
    assert (read.model_name, read.id, len(read.inputs)) == ("m", "mine", len(contents))
    assert read.parameters["priority"].uint64_param == 3
    assert [output.name for output in read.outputs] == ["y"]


def test_contents_are_views_of_what_came() -> None:
    data = request(LARGE).SerializeToString()
    (content,) = parse_request(data).raw_input_contents
    assert isinstance(content, memoryview)
    assert content.obj is data


@pytest.mark.parametrize("kind", ["request", "response"])
def test_what_is_written_is_what_protobuf_reads(kind: str) -> None:
    contents = [b"small", memoryview(LARGE), np.arange(40_000, dtype=np.float32)[:8].data.cast("B")]
    large: Any
    if kind == "request":
        large = request_with(pb.ModelInferRequest(id="a"), contents)
        read = pb.ModelInferRequest.FromString(large.SerializeToString())
        assert [*read.raw_input_contents] == [bytes(content) for content in contents]
    else:
        large = response_with(pb.ModelInferResponse(id="a"), contents)
        answer = pb.ModelInferResponse.FromString(large.SerializeToString())
        assert [*answer.raw_output_contents] == [bytes(content) for content in contents]
    assert large.id == "a"
    assert abs(large.ByteSize() - len(large.SerializeToString())) < 20


def test_small_messages_are_protobufs_own() -> None:
    small = request_with(pb.ModelInferRequest(), [b"x", memoryview(b"yz")])
    assert isinstance(small, pb.ModelInferRequest)
    assert [*small.raw_input_contents] == [b"x", b"yz"]
    assert isinstance(parse_request(request(b"x").SerializeToString()), pb.ModelInferRequest)
    assert isinstance(parse_response(b""), pb.ModelInferResponse)


def test_a_request_holds_what_its_arrays_held_when_it_was_made() -> None:
    array = np.zeros(LARGE_BYTES, np.uint8)
    made = infer_request("m", {"x": (array, "UINT8")})
    array[:] = 1
    read = pb.ModelInferRequest.FromString(made.SerializeToString())
    assert [*read.raw_input_contents] == [bytes(LARGE_BYTES)]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1 << 17, dtype=np.float32).reshape(512, 256).T,
        np.arange(1 << 18, dtype=np.int16)[::2],
        np.arange(1 << 17, dtype=">i4"),
        np.zeros((1 << 18, 0, 3), np.float32),
        np.full(1 << 17, True),
    ],
)
def test_arrays_of_any_layout_travel_as_their_elements_in_order(array: np.ndarray) -> None:
    datatype = {"f": "FP32", "b": "BOOL"}.get(array.dtype.kind, f"INT{8 * array.itemsize}")
    made = infer_request("m", {"x": (array, datatype)})
    read = pb.ModelInferRequest.FromString(made.SerializeToString())
    expected = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    assert read.raw_input_contents[0] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * LARGE_BYTES,
        b"\x3a\xff\xff\xff\xff\x0f" + bytes(LARGE_BYTES),
        b"\x3a" + bytes(LARGE_BYTES),
        request(LARGE).SerializeToString()[:-1],
        request(LARGE).SerializeToString() + b"\x3a",
        request(LARGE).SerializeToString() + b"\x0b",
    ],
)
def test_what_is_malformed_fails_as_in_protobuf(data: bytes) -> None:
    with pytest.raises(DecodeError):
        pb.ModelInferRequest.FromString(data)
    with pytest.raises(DecodeError):
        parse_request(data)


def test_messages_of_very_many_fields_are_left_to_protobuf() -> None:
    message = request(LARGE, *[b""] * MAX_FIELDS)
    read = parse_request(message.SerializeToString())
    assert isinstance(read, pb.ModelInferRequest)
    assert len(read.raw_input_contents) == MAX_FIELDS + 1


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 3))
def test_whatever_lies_around_large_contents_is_read_as_protobuf_reads_it(
    before: bytes, after: bytes, extra: int
) -> None:
    content = b"\x3a\x80\x80\x08" + LARGE
    data = before + content * (1 + extra) + after
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_request(data)
        return
    read: Any = parse_request(data)
    assert list(map(bytes, read.raw_input_contents)) == [*expected.raw_input_contents]
    del expected.raw_input_contents[:]
    rest = (
        pb.ModelInferRequest.FromString(read._message.SerializeToString())
        if isinstance(read, LargeMessage)
        else read
    )
    del rest.raw_input_contents[:]
    assert rest == expected

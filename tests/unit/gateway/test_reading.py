"""Bodies of HTTP requests become messages, or are refused with what was expected and what came."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import DATATYPES, decode_tensor, encode_tensor
from headrace_server.gateway.errors import HttpError
from headrace_server.gateway.reading import (
    MAX_JSON_BYTES,
    Wishes,
    read_infer,
    read_object,
    read_parameters,
)


def tensor(**given: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2], "datatype": "INT32", **given}


def body_of(*inputs: dict[str, Any], **others: Any) -> bytes:
    return json.dumps({"inputs": inputs, **others}).encode()


def read(body: bytes, json_length: int | None = None) -> tuple[pb.ModelInferRequest, Wishes]:
    return read_infer(body, json_length, "m", "1")


def refusal(body: bytes, json_length: int | None = None) -> str:
    with pytest.raises(HttpError) as error:
        read(body, json_length)
    assert error.value.status == 400
    return error.value.text


def test_json_becomes_the_message_that_a_client_over_grpc_would_send() -> None:
    message, wishes = read(
        body_of(
            tensor(data=[1, 2]),
            tensor(name="t", shape=[1, 2], datatype="BYTES", data=[["a", "ü"]]),
            id="7",
            parameters={"priority": 2, "big": 1 << 63, "share": 0.5, "yes": True, "text": "t"},
            outputs=[{"name": "y", "parameters": {"classification": 3}}],
        )
    )
    expected = pb.ModelInferRequest(model_name="m", model_version="1", id="7")
    expected.inputs.add(name="x", datatype="INT32", shape=[2])
    expected.inputs.add(name="t", datatype="BYTES", shape=[1, 2])
    expected.raw_input_contents.append(np.array([1, 2], np.int32).tobytes())
    expected.raw_input_contents.append(encode_tensor(np.array([["a", "ü"]], dtype=object)))
    expected.parameters["priority"].int64_param = 2
    expected.parameters["big"].uint64_param = 1 << 63
    expected.parameters["share"].double_param = 0.5
    expected.parameters["yes"].bool_param = True
    expected.parameters["text"].string_param = "t"
    expected.outputs.add(name="y").parameters["classification"].int64_param = 3
    assert message == expected
    assert not wishes.binary("y")


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_elements_of_every_datatype_come_in_json(datatype: str) -> None:
    given: list[Any] = [True, False]
    if datatype == "BYTES":
        given = ["", "text"]
    elif datatype != "BOOL":
        given = [0, 1.5] if datatype.startswith(("FP", "BF")) else [0, 100]
    message, _ = read(body_of(tensor(datatype=datatype, data=given)))
    came = decode_tensor(datatype, [2], message.raw_input_contents[0]).tolist()
    assert came == ([one.encode() for one in given] if datatype == "BYTES" else given)


@given(st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_numbers_that_json_lacks_come_as_text(numbers: list[float]) -> None:
    written = [
        {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(one), one) for one in numbers
    ]
    nested = [written[:2], written[2:]]
    message, _ = read(body_of(tensor(datatype="FP32", shape=[2, 2], data=nested)))
    came = decode_tensor("FP32", [4], message.raw_input_contents[0])
    assert np.array_equal(came, np.array(numbers, np.float32), equal_nan=True)


def test_bytes_behind_the_json_are_dealt_out_in_order() -> None:
    head = body_of(
        tensor(name="a", parameters={"binary_data_size": 3}),
        tensor(name="b", data=[1, 2]),
        tensor(name="c", parameters={"binary_data_size": 0}),
        tensor(name="d", parameters={"binary_data_size": 4, "more": "kept"}),
        outputs=[
            {"name": "p", "parameters": {"binary_data": False}},
            {"name": "q", "parameters": {"binary_data": True}},
        ],
        parameters={"binary_data_output": True},
    )
    message, wishes = read(head + b"abcdefg", len(head))
    assert [*message.raw_input_contents] == [b"abc", b"\1\0\0\0\2\0\0\0", b"", b"defg"]
    assert [*message.inputs[3].parameters] == ["more"]
    assert not message.inputs[0].parameters
    assert not message.parameters
    assert not message.outputs[0].parameters
    assert [wishes.binary(name) for name in "pqr"] == [False, True, True]


def test_what_lies_in_shared_memory_is_named_as_over_grpc() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    message, _ = read(body_of(tensor(parameters=region)))
    assert not message.raw_input_contents
    parameters = message.inputs[0].parameters
    assert parameters["shared_memory_region"].string_param == "r"
    assert parameters["shared_memory_byte_size"].int64_param == 8


def test_a_datatype_that_there_is_not_is_left_to_the_server() -> None:
    message, _ = read(body_of(tensor(datatype="FP8", data=[1, 2])))
    assert (message.inputs[0].datatype, [*message.raw_input_contents]) == ("FP8", [b""])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([1], "input 'x': expected 2 elements for [2], got 1"),
        ([[1, 2]], "input 'x': expected elements in one list, or nested as [2], got [1, 2]"),
        ([1, [2]], "input 'x': expected INT32 elements in even rows"),
        ([1, 1.5], "input 'x': expected INT32 elements, got float64"),
        ([1, "2"], "input 'x': expected INT32 elements, got <U21"),
        ([1, 1 << 31], "input 'x': expected INT32 elements from -2147483648 to 2147483647"),
        ([1, None], "input 'x': expected INT32 elements, got object"),
        (5, "input 'x': expected a list of INT32 elements, got 5"),
        (None, "input 'x': expected a list of INT32 elements, got None"),
        ({}, "input 'x': expected a list of INT32 elements, got {}"),
    ],
)
def test_elements_that_are_none_are_refused(data: Any, told: str) -> None:
    assert refusal(body_of(tensor(data=data))).startswith(told)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "told"),
    [
        ("INT32", [40_000, 1], "[]", "expected 40000 elements for [40000, 1], got fewer"),
        ("INT32", [40_000], "[]", "expected elements in one list, or nested as [40000], got 40001"),
        ("INT32", [60_000], "0", "expected 60000 elements for [60000], got fewer"),
        ("BYTES", [1 << 21], '""', "expected at most 1048576 BYTES elements, got 2097152"),
        ("BYTES", [60_000], '""', "expected 60000 elements for [60000], got fewer"),
    ],
)
def test_much_that_cannot_have_its_shape_is_not_even_unpacked(
    datatype: str, shape: list[int], data: str, told: str
) -> None:
    items = ",".join([data] * 40_000)
    body = body_of(tensor(datatype=datatype, shape=shape, data="DATA"))
    assert told in refusal(body.replace(b'"DATA"', b"[" + items.encode() + b"]"))


def test_much_that_has_its_shape_is_read() -> None:
    rows = [[number, -number] for number in range(10_000)]
    message, _ = read(body_of(tensor(shape=[10_000, 2], data=rows)))
    assert decode_tensor("INT32", [10_000, 2], message.raw_input_contents[0]).tolist() == rows
    texts = [str(number) for number in range(20_000)]
    message, _ = read(body_of(tensor(shape=[20_000], datatype="BYTES", data=texts)))
    got = decode_tensor("BYTES", [20_000], message.raw_input_contents[0])
    assert [element.decode() for element in got.tolist()] == texts


def test_json_beyond_what_is_read_in_one_go_is_refused_with_the_way_to_send_it() -> None:
    body = body_of(tensor(data=[1, 2])) + b" " * MAX_JSON_BYTES
    with pytest.raises(HttpError, match="send what is large as bytes behind it") as error:
        read(body)
    assert error.value.status == 413
    with pytest.raises(HttpError, match="expected a body of at most"):
        read_object(body)


def test_numbers_that_json_lacks_come_as_python_writes_them_too() -> None:
    tricky = 'NaN "\\" -Infinity\\'
    body = json.dumps(
        {
            "id": tricky,
            "inputs": [tensor(datatype="FP64", data=[math.nan, -math.inf])],
        }
    ).encode()
    assert b"NaN," in body
    message, _ = read(body)
    assert message.id == tricky
    got = decode_tensor("FP64", [2], message.raw_input_contents[0])
    assert np.array_equal(got, [math.nan, -math.inf], equal_nan=True)
    assert "expected INT32 elements" in refusal(body_of(tensor(data=[1, math.nan])))


def test_what_may_be_left_out_may_be_null() -> None:
    body = body_of(
        tensor(data=[1, 2], parameters=None),
        id=None,
        parameters=None,
        outputs=[{"name": "y", "parameters": None}],
    )
    message, _ = read(body)
    assert (message.id, len(message.outputs)) == ("", 1)
    assert read(body_of(tensor(data=[1, 2]), outputs=None))[0].outputs == []


@pytest.mark.parametrize("text", ["nan", "Inf", "1.5", ""])
def test_only_numbers_that_json_lacks_may_be_text(text: str) -> None:
    told = refusal(body_of(tensor(datatype="FP32", data=[1, text])))
    assert told.startswith("input 'x': expected FP32 elements, got <U")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "expected a request in JSON: "),
        (b"{", "expected a request in JSON: "),
        (b"\xff", "expected a request in JSON: "),
        (b"[" * 100_000, "expected a request in JSON: "),
        (b'{"inputs": 5}', "expected a request in JSON: Expected `array`, got `int`"),
        (b"{}", "expected a request in JSON: Object missing required field `inputs`"),
        (body_of(tensor()), "input 'x': expected one of 'data', 'binary_data_size' and"),
        (
            body_of(tensor(data=[1, 2], parameters={"binary_data_size": 8})),
            "input 'x': expected one of 'data', 'binary_data_size' and 'shared_memory_region', "
            "got 2 of them",
        ),
        (
            body_of(tensor(parameters={"binary_data_size": 8})),
            "input 'x': expected 8 bytes behind the JSON, got 0",
        ),
        *(
            (
                body_of(tensor(parameters={"binary_data_size": size})),
                "input 'x': expected 'binary_data_size' in bytes, got ",
            )
            for size in (-1, True, "8", 8.0)
        ),
        *(
            (
                body_of(tensor(data=[1, 2]), parameters={"binary_data_output": value}),
                "parameter 'binary_data_output': expected true or false, got ",
            )
            for value in ("false", 1, 0.0)
        ),
        (
            body_of(
                tensor(data=[1, 2]), outputs=[{"name": "y", "parameters": {"binary_data": "no"}}]
            ),
            "parameter 'binary_data': expected true or false, got 'no'",
        ),
        (body_of(tensor(shape=[-1])), "expected a request in JSON: Expected `int` >= 0"),
        (body_of(tensor(shape=[1 << 63])), "expected a request in JSON: Expected `int` <="),
        (
            body_of(tensor(data=[1, 2]), parameters={"p": 1 << 64}),
            "parameter 'p': expected 64 bits, got 18446744073709551616",
        ),
        (body_of(tensor(data=[1, 2]), parameters={"p": []}), "expected a request in JSON: "),
    ],
)
def test_bodies_that_are_no_request_are_refused(body: bytes, told: str) -> None:
    assert refusal(body).startswith(told)


def test_lengths_that_contradict_the_body_are_refused() -> None:
    body = body_of(tensor(data=[1, 2]))
    assert refusal(body, len(body) + 1) == (
        f"expected {len(body) + 1} bytes of JSON, got a body of {len(body)}"
    )
    head = body_of(tensor(parameters={"binary_data_size": 8}))
    assert refusal(head + bytes(9), len(head)) == (
        "expected 8 bytes behind the JSON, as its inputs say, got 9"
    )


@given(st.binary(max_size=60), st.none() | st.integers(0, 70))
def test_whatever_comes_is_read_or_refused(body: bytes, length: int | None) -> None:
    with pytest.raises(HttpError):
        read(body, length)


def test_an_object_may_be_left_out_and_nothing_else_may_stand_for_it() -> None:
    assert read_object(b" ") == {}
    assert read_object(b'{"a": 1}') == {"a": 1}
    for body in (b"[]", b"{", b"\xff"):
        with pytest.raises(HttpError, match="expected a JSON object"):
            read_object(body)
    with pytest.raises(HttpError, match="parameters: Expected `object`"):
        read_parameters([])

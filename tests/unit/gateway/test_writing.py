"""Answers become JSON, and bytes behind it; messages become JSON as Triton writes it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol.model_config_pb2 import ModelConfig
from headrace.tensors import encode_tensor
from headrace_server.gateway.errors import HttpError
from headrace_server.gateway.reading import MAX_JSON_BYTES, Wishes
from headrace_server.gateway.writing import as_json, write_infer

IN_JSON = Wishes(False, {})


def answer(*outputs: tuple[str, str, Any]) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="m", model_version="1")
    for name, datatype, array in outputs:
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(encode_tensor(array, datatype))
    return response


def written(response: pb.ModelInferResponse, wishes: Wishes = IN_JSON) -> Any:
    (head,), headers = write_infer(response, wishes)
    assert headers == {"Content-Type": "application/json"}
    return json.loads(head)


def test_an_answer_in_json() -> None:
    response = answer(
        ("y", "FP32", np.array([[0.5, -1]], np.float32)),
        ("b", "BOOL", np.array([True])),
        ("t", "BYTES", np.array(["ü", ""], dtype=object)),
        ("e", "INT64", np.zeros((0, 3), np.int64)),
    )
    response.id = "7"
    response.parameters["headrace_batch_rows"].int64_param = 4
    response.outputs[0].parameters["p"].string_param = "v"
    assert written(response) == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "parameters": {"headrace_batch_rows": 4},
        "outputs": [
            {
                "name": "y",
                "datatype": "FP32",
                "shape": [1, 2],
                "data": [0.5, -1.0],
                "parameters": {"p": "v"},
            },
            {"name": "b", "datatype": "BOOL", "shape": [1], "data": [True]},
            {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["ü", ""]},
            {"name": "e", "datatype": "INT64", "shape": [0, 3], "data": []},
        ],
    }


@given(st.lists(st.floats(width=32)))
def test_every_number_can_be_read_again(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    (output,) = written(answer(("y", "FP32", array)))["outputs"]
    assert np.array_equal(np.array(output["data"], np.float32), array, equal_nan=True)
    for number, text in zip(numbers, output["data"], strict=True):
        assert isinstance(text, str) is not math.isfinite(number)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64", "UINT64"])
def test_numbers_of_every_width(datatype: str) -> None:
    dtype = {"FP16": np.float16, "BF16": np.float32, "FP64": np.float64, "UINT64": np.uint64}
    array = np.array([0, 1, 250], dtype[datatype])
    assert written(answer(("y", datatype, array)))["outputs"][0]["data"] == [0, 1, 250]


def test_outputs_that_are_wanted_as_bytes_lie_behind_the_json_in_their_order() -> None:
    response = answer(
        ("p", "INT16", np.array([1, 2], np.int16)),
        ("q", "INT16", np.array([3], np.int16)),
        ("r", "INT16", np.array([4], np.int16)),
    )
    (head, *binary), headers = write_infer(response, Wishes(True, {"q": False}))
    assert headers == {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    assert binary == [b"\1\0\2\0", b"\4\0"]
    p, q, r = json.loads(head)["outputs"]
    assert (p["parameters"], r["parameters"]) == ({"binary_data_size": 4}, {"binary_data_size": 2})
    assert (q["data"], "data" in p, "data" in r) == ([3], False, False)


def test_what_lies_in_shared_memory_is_not_sent() -> None:
    response = answer(("q", "INT16", np.array([3], np.int16)))
    output = pb.ModelInferResponse.InferOutputTensor(name="p", datatype="INT16", shape=[1])
    output.parameters["shared_memory_region"].string_param = "r"
    response.outputs.insert(0, output)
    p, q = written(response)["outputs"]
    assert p["parameters"] == {"shared_memory_region": "r"}
    assert (q["data"], "data" in p) == ([3], False)


def test_bytes_that_are_no_text_are_refused_with_the_way_to_get_them() -> None:
    response = answer(("y", "BYTES", np.array([b"\xff"], dtype=object)))
    with pytest.raises(HttpError, match=r"output 'y' cannot be written in JSON.*'binary_data'"):
        write_infer(response, IN_JSON)


def test_what_is_too_much_for_json_is_refused_with_the_way_to_get_it() -> None:
    half = np.zeros(MAX_JSON_BYTES // 2 + 1, np.uint8)
    response = answer(("y", "UINT8", half), ("z", "UINT8", half))
    with pytest.raises(HttpError, match=r"output 'z' cannot be written in JSON: 8388610 bytes"):
        write_infer(response, IN_JSON)
    assert len(write_infer(response, Wishes(True, {"y": False}))[0]) == 2


def test_messages_in_json_have_every_field_but_messages_that_are_not_set() -> None:
    config = ModelConfig(name="m", max_batch_size=4)
    config.input.add(name="x", dims=[-1, 1 << 40])
    config.parameters["k"].string_value = "v"
    got = as_json(config)
    assert (got["name"], got["max_batch_size"], got["platform"]) == ("m", 4, "")
    assert got["input"][0]["dims"] == [-1, 1 << 40]
    assert got["input"][0]["data_type"] == "TYPE_INVALID"
    assert got["parameters"] == {"k": {"string_value": "v"}}
    assert "dynamic_batching" not in got
    config.dynamic_batching.SetInParent()
    assert as_json(config)["dynamic_batching"]["preferred_batch_size"] == []


def test_an_enumeration_by_a_number_that_nobody_knows_stays_a_number() -> None:
    config = ModelConfig()
    config.input.add(data_type=99)  # type: ignore[arg-type]
    assert as_json(config)["input"][0]["data_type"] == 99

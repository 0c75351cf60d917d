"""From messages to the bodies of HTTP answers: JSON, and tensors as bytes behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import Message

from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import TensorError, decode_tensor
from headrace_server.gateway.errors import HttpError, bad_request
from headrace_server.gateway.reading import (
    BINARY_OUTPUT,
    BINARY_SIZE,
    MAX_JSON_BYTES,
    Wishes,
)
from headrace_server.transport.regions import REGION_PARAMETER

LENGTH_HEADER = "Inference-Header-Content-Length"
JSON = "application/json"
BINARY = "application/octet-stream"

Body = tuple[list[bytes], dict[str, str]]
"""The pieces of a body in their order, and its headers."""

encode_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def write_infer(response: pb.ModelInferResponse, wishes: Wishes) -> Body:
    """The answer to an inference request.

    Raises:
        HttpError: an output cannot be written in JSON.
    """
    outputs, binary, raw = [], [], iter(response.raw_output_contents)
    in_json = 0
    for output in response.outputs:
        parameters = parameters_of(output.parameters)
        written: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if REGION_PARAMETER not in parameters:
            contents = next(raw)
            if wishes.binary(output.name):
                parameters[BINARY_SIZE] = len(contents)
                binary.append(contents)
            else:
                in_json += len(contents)
                if in_json > MAX_JSON_BYTES:
                    raise _as_bytes(output.name, f"{in_json} bytes are more than {MAX_JSON_BYTES}")
                written["data"] = _elements(output, contents)
        if parameters:
            written["parameters"] = parameters
        outputs.append(written)
    answer: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        answer["id"] = response.id
    if response.parameters:
        answer["parameters"] = parameters_of(response.parameters)
    answer["outputs"] = outputs
    head = encode_json(answer)
    if not binary:
        return [head], {"Content-Type": JSON}
    return [head, *binary], {"Content-Type": BINARY, LENGTH_HEADER: str(len(head))}


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a message as JSON has them."""
    return {name: as_json(parameter) for name, parameter in parameters.items()}


def as_json(message: Message) -> Any:
    """A message in JSON as Triton writes it: names as in the protocol, enumerations by name, 64-bit
    integers as numbers, and every field, but for messages that are not set."""
    if isinstance(message, pb.InferParameter | pb.ModelRepositoryParameter):
        return getattr(message, message.WhichOneof("parameter_choice") or "string_param")
    return {
        field.name: _field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field(field: Any, value: Any) -> Any:
    """The value of a field that this descriptor is of."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of_value = field.message_type.fields_by_name["value"]
        return {str(key): _single(of_value, one) for key, one in value.items()}
    if field.is_repeated:
        return [_single(field, one) for one in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return as_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value


def _elements(output: pb.ModelInferResponse.InferOutputTensor, contents: bytes) -> list[Any]:
    try:
        array = decode_tensor(output.datatype, output.shape, contents).ravel()
        if output.datatype == "BYTES":
            return [element.decode() for element in array.tolist()]
    except (TensorError, UnicodeDecodeError) as error:
        raise _as_bytes(output.name, str(error)) from None
    elements: list[Any] = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [one if math.isfinite(one) else _as_text(one) for one in elements]
    return elements


def _as_bytes(output: str, problem: str) -> HttpError:
    return bad_request(
        f"output '{output}' cannot be written in JSON: {problem}; ask for it as bytes, with the "
        f"parameter '{BINARY_OUTPUT}': true"
    )


def _as_text(number: float) -> str:
    """See `reading.NUMBERS_AS_TEXT`."""
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"

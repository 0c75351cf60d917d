"""From the body of an HTTP request to a ModelInferRequest: JSON, and bytes behind it.

The Open Inference Protocol's REST form with Triton's extension for binary tensors: where the header
`Inference-Header-Content-Length` says so, the body begins with that many bytes of JSON, and what
inputs with a `binary_data_size` hold lies behind it, in their order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import numpy as np

from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import DATATYPES, TensorError, array_of, encode_tensor
from headrace_server.gateway.errors import HttpError, bad_request, too_large
from headrace_server.transport.reading import MAX_BYTES_ELEMENTS
from headrace_server.transport.regions import REGION_PARAMETER

BINARY_SIZE = "binary_data_size"
BINARY_OUTPUT = "binary_data"
BINARY_OUTPUTS = "binary_data_output"

NUMBERS_AS_TEXT = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}
"""How numbers that JSON lacks are written, here as in `headrace infer`."""

MAX_JSON_BYTES = 8 << 20
"""Of a body, and of what of an answer is written in it: it is read and written in one go, while
everybody else over HTTP waits. The most that so many bytes were seen to take is 2.2 s on a busy
core, and 464 MiB of memory for that long (`NaN`, all of it)."""

SMALL_JSON_BYTES = 64 << 10
"""Of a tensor, whatever is in it: unpacked before anything is asked, for the better text."""

_BARE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')

Dimension = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Parameters = dict[str, bool | int | float | str]


class _Input(msgspec.Struct):
    name: str
    shape: list[Dimension]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_Output] | None = None


class Wishes(msgspec.Struct, frozen=True):
    """Which outputs are to come as bytes: those named here as they say, others by `by_default`."""

    by_default: bool
    named: Mapping[str, bool]

    def binary(self, output: str) -> bool:
        """Whether this output is to."""
        return self.named.get(output, self.by_default)


@dataclass(slots=True)
class _Tail:
    """The bytes behind the JSON, dealt out in their order."""

    rest: memoryview

    def take(self, name: str, size: object) -> memoryview:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise bad_request(f"input '{name}': expected '{BINARY_SIZE}' in bytes, got {size!r}")
        if size > len(self.rest):
            raise bad_request(
                f"input '{name}': expected {size} bytes behind the JSON, got {len(self.rest)}"
            )
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


_decode = msgspec.json.Decoder(_Request).decode


def read_infer(
    body: bytes, json_length: int | None, model: str, version: str
) -> tuple[pb.ModelInferRequest, Wishes]:
    """The request for that model, and how its answer is to be written.

    Args:
        body: the whole of it.
        json_length: bytes of JSON at its beginning; None if it is nothing else.

    Raises:
        HttpError: with what was expected and what came.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise bad_request(f"expected {length} bytes of JSON, got a body of {len(body)}")
    view = memoryview(body)
    asked = _request(view[:length])
    parameters = asked.parameters or {}
    by_default = _flag(parameters, BINARY_OUTPUTS) or False
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=asked.id or "")
    _fill(message.parameters, parameters)
    tail = _Tail(view[length:])
    for given in asked.inputs:
        parameters = given.parameters or {}
        size = parameters.pop(BINARY_SIZE, None)
        tensor = message.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        _fill(tensor.parameters, parameters)
        has_data = len(given.data) > 0
        ways = has_data + (size is not None) + (REGION_PARAMETER in parameters)
        if ways != 1:
            raise bad_request(
                f"input '{given.name}': expected one of 'data', '{BINARY_SIZE}' and "
                f"'{REGION_PARAMETER}', got {ways or 'none'} of them"
            )
        if has_data:
            message.raw_input_contents.append(_contents(given))
        elif size is not None:
            message.raw_input_contents.append(bytes(tail.take(given.name, size)))
    if len(tail.rest):
        raise bad_request(
            f"expected {len(body) - length - len(tail.rest)} bytes behind the JSON, as its inputs "
            f"say, got {len(body) - length}"
        )
    named: dict[str, bool] = {}
    for wanted in asked.outputs or ():
        parameters = wanted.parameters or {}
        binary = _flag(parameters, BINARY_OUTPUT)
        if binary is not None:
            named[wanted.name] = binary
        output = message.outputs.add(name=wanted.name)
        _fill(output.parameters, parameters)
    return message, Wishes(by_default, named)


def _request(text: memoryview) -> _Request:
    """What the JSON says. Raises `HttpError`."""
    if len(text) > MAX_JSON_BYTES:
        raise HttpError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {len(text)}: send what is large "
            f"as bytes behind it ('{BINARY_SIZE}')",
        )
    try:
        try:
            return _decode(text)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python's own writer, and clients with it, writes numbers that JSON lacks as they are.
            return _decode(_BARE.sub(_quoted, bytes(text)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"expected a request in JSON: {error}") from None


def _quoted(found: re.Match[bytes]) -> bytes:
    return found[0] if found[0].startswith(b'"') else b'"%b"' % found[0]


def _flag(parameters: Parameters, name: str) -> bool | None:
    """Take a parameter that is true or false out of them; None if it is not there. Raises
    `HttpError`."""
    value = parameters.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"parameter '{name}': expected true or false, got {value!r:.40}")
    return value


def read_object(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object, or nothing. Raises `HttpError`."""
    if not body.strip():
        return {}
    if len(body) > MAX_JSON_BYTES:
        raise too_large(MAX_JSON_BYTES)
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"expected a JSON object: {error}") from None


def read_parameters(given: object) -> Parameters:
    """The value of a `parameters` key. Raises `HttpError`."""
    try:
        return msgspec.convert(given, Parameters)
    except msgspec.ValidationError as error:
        raise bad_request(f"parameters: {error}") from None


def _contents(given: _Input) -> bytes:
    """The bytes of a tensor whose elements come in JSON, flat or nested as its shape."""
    if given.datatype not in DATATYPES:
        return b""  # the server says best what it expects
    try:
        if len(given.data) > SMALL_JSON_BYTES:
            _check_size(given)
        value = msgspec.json.decode(given.data)
        if not isinstance(value, list):
            raise TensorError(f"expected a list of {given.datatype} elements, got {value!r:.40}")
        if given.datatype.startswith(("FP", "BF")) and b'"' in bytes(given.data):
            value = _with_numbers(value)
        array = array_of(value, given.datatype)
        if array.ndim != 1 and array.shape != tuple(given.shape):
            raise TensorError(
                f"expected elements in one list, or nested as {given.shape}, got "
                f"{list(array.shape)}"
            )
        if array.size != math.prod(given.shape):
            raise TensorError(
                f"expected {math.prod(given.shape)} elements for {given.shape}, got {array.size}"
            )
        # BF16 is made of single precision, which is what `array_of` gives.
        return encode_tensor(np.ascontiguousarray(array), given.datatype)
    except (TensorError, msgspec.MsgspecError, RecursionError) as error:
        raise bad_request(f"input '{given.name}': {error}") from None


def _check_size(given: _Input) -> None:
    """Refuse what cannot have this shape before it is unpacked: an empty list takes 30 times the
    memory that it takes in JSON. Raises `TensorError`."""
    data, shape, elements = bytes(given.data), given.shape, math.prod(given.shape)
    if given.datatype == "BYTES":
        if elements > MAX_BYTES_ELEMENTS:
            raise TensorError(
                f"expected at most {MAX_BYTES_ELEMENTS} BYTES elements, got {elements}"
            )
        least = 3 * elements  # two quotes and a comma
    else:
        lists = 1 + sum(math.prod(shape[:depth]) for depth in range(1, len(shape)))
        found = data.count(b"[")
        if found > lists:
            raise TensorError(
                f"expected elements in one list, or nested as {shape}, got {found} lists"
            )
        least = 2 * elements + 2 * (found - 1)  # a digit and a comma, and brackets
    if least > len(data):
        raise TensorError(f"expected {elements} elements for {shape}, got fewer")


def _with_numbers(value: object) -> Any:
    if isinstance(value, list):
        return [_with_numbers(one) for one in value]
    if isinstance(value, str):
        return NUMBERS_AS_TEXT.get(value, value)
    return value


def _fill(target: Any, parameters: Parameters) -> None:
    """Set the parameters of a message. Raises `HttpError`."""
    for name, value in parameters.items():
        match value:
            case bool():
                target[name].bool_param = value
            case int() if -(1 << 63) <= value < 1 << 63:
                target[name].int64_param = value
            case int() if 0 <= value < 1 << 64:
                target[name].uint64_param = value
            case int():
                raise bad_request(f"parameter '{name}': expected 64 bits, got {value}")
            case float():
                target[name].double_param = value
            case str():
                target[name].string_param = value


def fill_control(target: Any, parameters: Parameters) -> None:
    """Set the parameters of a message of model control, which has no numbers but integers. Raises
    `HttpError`."""
    for name, value in parameters.items():
        if isinstance(value, float) or (isinstance(value, int) and value >= 1 << 63):
            raise bad_request(f"parameter '{name}': expected text, true, false or 63 bits")
    _fill(target, parameters)

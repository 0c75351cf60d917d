"""How a tensor travels to each server and back: bodies of requests, arrays of answers.

Generators send bodies that were made before the run and do not read the answers; what is read
here is what is checked.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt

from headrace.messages import infer_request, infer_result
from headrace.protocol import grpc_service_pb2 as pb

Array: TypeAlias = npt.NDArray[Any]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
REPLY_TIMEOUT_S = 60.0


class NoAnswerError(Exception):
    """The server did not answer this request (not yet, or with an error); says what it said."""


class Wire(Protocol):
    """One server's way to carry a request."""

    @property
    def name(self) -> str:
        """What it is called in the report."""
        ...

    @property
    def path(self) -> str:
        """Where requests go to."""
        ...

    @property
    def headers(self) -> Sequence[str]:
        """What they have beside their body, as h2load takes it."""
        ...

    def body(self, model: str, given: str, array: Array) -> bytes:
        """A request for `model` with the input `given`, BYTES or FP32 [1, ...]."""
        ...

    def post(self, address: str, body: bytes) -> Array:
        """Send it and read the one output, without its batch dimension.

        Raises:
            NoAnswerError: there was none.
        """
        ...


class Grpc:
    """The Open Inference Protocol, raw contents."""

    name = "gRPC"
    path = METHOD
    headers = ("content-type: application/grpc", "te: trailers")

    def body(self, model: str, given: str, array: Array) -> bytes:
        datatype = "BYTES" if array.dtype == object else "FP32"
        return infer_request(model, {given: (array, datatype)}).SerializeToString()

    def post(self, address: str, body: bytes) -> Array:
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(address, options) as channel:
            try:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
                reply = call(body, timeout=REPLY_TIMEOUT_S)
            except grpc.RpcError as error:
                raise NoAnswerError(f"{error.code().name}: {error.details()}") from None
        (output,) = infer_result(pb.ModelInferResponse.FromString(reply)).outputs.values()
        answer: Array = output[0]
        return answer


@dataclass(frozen=True)
class Http:
    """HTTP/1.1; a subclass says how a tensor becomes a body, and an answer an array."""

    path: str
    headers: Sequence[str] = field(default=("content-type: application/octet-stream",))
    name: str = field(default="HTTP/1.1", init=False)

    def post(self, address: str, body: bytes) -> Array:
        connection = http.client.HTTPConnection(address, timeout=REPLY_TIMEOUT_S)
        try:
            headers = dict(header.split(": ", 1) for header in self.headers)
            connection.request("POST", self.path, body, headers)
            response = connection.getresponse()
            reply = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(str(error)) from None
        finally:
            connection.close()
        if response.status != 200:
            raise NoAnswerError(f"status {response.status}: {reply[:200]!r}")
        return self.array(reply)

    def array(self, reply: bytes) -> Array:
        raise NotImplementedError


class RawHttp(Http):
    """The bytes of the tensor as they are, both ways."""

    def body(self, model: str, given: str, array: Array) -> bytes:
        return array.ravel()[0] if array.dtype == object else array.tobytes()

    def array(self, reply: bytes) -> Array:
        return np.frombuffer(reply, np.float32)


class JsonHttp(Http):
    """JSON: text as it is, a tensor as base64; the answer a list of numbers."""

    def body(self, model: str, given: str, array: Array) -> bytes:
        if array.dtype == object:
            return json.dumps({given: array.ravel()[0].decode()}).encode()
        return json.dumps({given: base64.b64encode(array.tobytes()).decode()}).encode()

    def array(self, reply: bytes) -> Array:
        return np.array(json.loads(reply), np.float32)


def http_request(wire: Http, address: str, body: bytes) -> bytes:
    """A whole HTTP/1.1 request on a connection that stays open."""
    head = (f"POST {wire.path} HTTP/1.1", f"host: {address}", f"content-length: {len(body)}")
    return "\r\n".join([*head, *wire.headers, "", ""]).encode() + body

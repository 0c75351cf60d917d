"""The messages between a front and the engine's process, and their codec. Sans-I/O.

They travel in bundles: whatever one side has to say in one round of its event loop. A bundle also
says how many bundles of the other side have been dealt with, which frees memory and lets the engine
know that a front has seen what it was told.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace_server.core.errors import Reason, ServingError
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import Parameter

MAX_BUNDLE_BYTES = (1 << 32) - 1
"""A message of gRPC is half of that at most, and a bundle has one such message."""

MAX_ANSWER_BYTES = MAX_BUNDLE_BYTES >> 1
"""Contents of an answer that travel in its message: more than that, gRPC could not send either."""

Contents = bytes | tuple[int, int] | None
"""Of a tensor: here, or at this offset and so long in the sender's memory; None if left out."""


class Submit(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to engine: a call, as in `engine.calls.Call`. `deployment` is a `Row.number`;
    `arrived_s`, a moment that all processes of a machine agree on, is when its times began."""

    id: int
    deployment: int
    rows: int
    data: tuple[Contents, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    parameters: dict[str, Parameter]
    nbytes: int
    arrived_s: float
    priority: int
    timeout_s: float | None
    remaining_s: float | None
    wanted: tuple[int, ...] | None
    tenant: str
    weight: float


class Cancel(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to engine: the caller went away. Its end is told all the same."""

    id: int


class Invalid(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to engine: count a call that never became a request."""

    model: str
    reason: str


class Listening(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to engine: connections are accepted; or not, and why."""

    problem: str = ""


class Output(msgspec.Struct, array_like=True, frozen=True):
    """One tensor of an answer."""

    shape: tuple[int, ...]
    data: Contents


class Answered(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Engine to front: the answer; the request's memory is free."""

    id: int
    outputs: tuple[Output, ...]
    batch_rows: int
    queue_s: float
    input_ns: int
    infer_ns: int
    output_ns: int


class Refused(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Engine to front: no answer, as a `ServingError`; the request's memory is free."""

    id: int
    reason: str
    details: dict[str, Any]
    counted: bool


class Row(msgspec.Struct, array_like=True, frozen=True):
    """One deployment. `number` is its own for as long as the server runs, whatever else is loaded
    under the same name. `spec` is there once it is loaded."""

    number: int
    model: str
    version: int
    state: str
    spec: ModelSpec | None


class Table(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Engine to front: everything that calls may find, as in `engine.engine.Listing`."""

    rows: tuple[Row, ...]
    loading: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]
    stopping: bool


class Settings(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Engine to front, first of all: what to serve, and how.

    `address` as gRPC writes it, `passed_on` the path of the engine's own socket. `index` is the
    front's number, from 0. Empty files are none. `unread_bytes` bounds answers that nobody reads.
    """

    index: int
    address: str
    passed_on: str
    max_message_bytes: int
    max_connections: int
    compressed: bool
    unread_bytes: int
    tls_cert: str
    tls_key: str
    tls_client_ca: str
    tokens: str
    log_format: str
    log_level: str


class Stop(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Engine to front: what was admitted is answered; give that so many seconds, and end."""

    grace_s: float


FromFront = Submit | Cancel | Invalid | Listening
ToFront = Answered | Refused | Table | Settings | Stop


class BundleFromFront(msgspec.Struct, array_like=True, frozen=True):
    """What a front had to say. `seen`: bundles from the engine that were dealt with before."""

    seen: int
    messages: list[FromFront]


class BundleToFront(msgspec.Struct, array_like=True, frozen=True):
    """What the engine's process had to say. `seen`: likewise."""

    seen: int
    messages: list[ToFront]


Bundle = BundleFromFront | BundleToFront

encoder = msgspec.msgpack.Encoder(enc_hook=str)
"""Details of errors may be of any type; their text is all that is ever shown."""
read_from_front = msgspec.msgpack.Decoder(BundleFromFront).decode
read_to_front = msgspec.msgpack.Decoder(BundleToFront).decode


def refusal(request_id: int, error: ServingError) -> Refused:
    """An error on its way to the front."""
    return Refused(request_id, error.reason.value, error.details, error.counted)


def error_of(message: Refused) -> ServingError:
    """The error that `refusal` was given."""
    error = ServingError(Reason(message.reason), **message.details)
    error.counted = message.counted
    return error

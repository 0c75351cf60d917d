"""Many calls over few streams: how calls and answers are matched, and when streams are used.

No input or output here; both clients use it, and the server for the words of the extension.

A stream of the protocol (`ModelStreamInfer`) answers each request by its id, which is all that is
needed to carry independent calls. What a unary call has and a stream lacks, a server that lists
the extension `headrace_stream` takes and gives as parameters and metadata; others ignore the
metadata and are not sent the parameters:

- metadata `headrace_unordered: true` of the stream: answers may come as they are ready, where
  otherwise they come in the order of the requests;
- metadata `headrace_bundles: true` of the stream: a message of either side may be a bundle, which
  names no model and has no id; each of its raw contents, `MAX_BUNDLE` at most, is a whole message.
  A message costs more on its way than a request in it, so what is ready at the same time travels
  together;
- `headrace_remaining_us` of a request: microseconds until the caller's deadline;
- `headrace_cancel` of a request that names no model: the id of a request to give up. That one is
  answered, with an error; the message that asks for it is not;
- `headrace_code`, `headrace_reason` and `headrace_retry_after_us` beside an `error_message`: the
  number of the gRPC status, and what ErrorInfo and RetryInfo hold.

Any other request that names no model is answered with an error, which tells a client that asks
who it talks to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from headrace.errors import InvalidResponse, ServerError, Unavailable, error_of_code
from headrace.large_messages import LARGE_BYTES, LargeMessage
from headrace.protocol import grpc_service_pb2 as pb

__all__ = [
    "BUNDLES_METADATA",
    "CANCEL_PARAMETER",
    "ENDED",
    "EXTENSION",
    "FINAL_PARAMETER",
    "MAX_BUNDLE",
    "MAX_BUNDLE_BYTES",
    "MAX_IN_FLIGHT",
    "MAX_MESSAGE_BYTES",
    "METHOD",
    "OPENING_TIMEOUT_S",
    "PROBE",
    "REMAINING_PARAMETER",
    "STREAM_METADATA",
    "UNORDERED_METADATA",
    "Multiplex",
    "NotForStreams",
    "StreamCall",
    "StreamCalls",
    "StreamPool",
    "broken",
    "bundle_of_answers",
    "bundle_of_requests",
    "cancellation",
    "deadline_exceeded",
    "pack_error",
    "speaks_extension",
    "unbundle",
    "unpack",
]

EXTENSION = "headrace_stream"
UNORDERED_METADATA = "headrace_unordered"
BUNDLES_METADATA = "headrace_bundles"
REMAINING_PARAMETER = "headrace_remaining_us"
CANCEL_PARAMETER = "headrace_cancel"
FINAL_PARAMETER = "triton_final_response"
CODE_PARAMETER = "headrace_code"
REASON_PARAMETER = "headrace_reason"
RETRY_PARAMETER = "headrace_retry_after_us"

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
STREAM_METADATA = ((UNORDERED_METADATA, "true"), (BUNDLES_METADATA, "true"))
PROBE = pb.ModelInferRequest(id="probe").SerializeToString()
"""What a client sends first: whoever answers it by its id can be multiplexed."""

MAX_IN_FLIGHT = 512
"""Calls of one stream. Half of what Headrace reads ahead, and with `MAX_MESSAGE_BYTES` each no more
bytes than it does, so that cancellations are read."""

MAX_STREAMS = 4
"""Per client. One carries what an event loop can; more keep a burst from waiting in one line."""

BUSY = 256
"""Calls in flight on each stream from which one more stream is opened."""

OPENING_TIMEOUT_S = 10.0
"""For a stream to open and its probe to be answered."""

UNDER_LOAD = 8
"""Calls in flight from which a client that multiplexes under load only does so."""

MAX_MESSAGE_BYTES = LARGE_BYTES
"""Larger requests go alone: on a stream all others would wait behind them, and what a stream
saves per call is little against copying that much."""

LONGEST_TOLD_S = 2.0**53 / 1e6
"""Until a deadline, 285 years: farther ones are told as this, whose microseconds fit a float."""

MAX_BUNDLE = 64
"""Messages in a bundle: the gain is nearly all there, and nobody is kept busy with one for long."""

MAX_BUNDLE_BYTES = 256 << 10
"""At which a bundle is closed, so that it is at most this and one message."""

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
"""Between attempts to open a stream, in the background, while calls go the other way."""

STABLE_S = 60.0
"""A stream that lived for so long does not speak against the next one."""

Multiplex: TypeAlias = bool | Literal["auto"]
"""Whether calls share streams: `auto` under load only, and only to a server that gives answers in
any order."""

ENDED = InvalidResponse("the server ended the stream")

Wait = TypeVar("Wait")


class NotForStreams(Exception):  # noqa: N818 - a decision, not a failure
    """This call goes as a unary one: it is too large, or its model `answers_in_pieces`."""

    def __init__(self, *, answers_in_pieces: bool) -> None:
        self.answers_in_pieces = answers_in_pieces
        super().__init__(answers_in_pieces)


# -- one stream -----------------------------------------------------------------------------


class StreamCall(Generic[Wait]):
    """One call that waits for its answer on a stream; `wait` is what the client waits on."""

    __slots__ = ("id", "request_id", "wait")

    def __init__(self, call_id: str, request_id: str, wait: Wait) -> None:
        self.id = call_id
        self.request_id = request_id
        self.wait = wait


class StreamCalls(Generic[Wait]):
    """The calls of one stream. Each has an id of its own on the wire; the caller's is kept."""

    def __init__(self) -> None:
        self._calls: dict[str, StreamCall[Wait]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._calls)

    def open(
        self,
        request: pb.ModelInferRequest,
        wait: Wait,
        remaining_s: float | None,
    ) -> tuple[StreamCall[Wait], bytes]:
        """A call with this request, and the message to send. The request is left as it was.

        Args:
            request: what is asked.
            wait: kept with the call.
            remaining_s: seconds until the deadline that the server is told; None or infinite for
                none.

        Raises:
            NotForStreams: the message is too large.
        """
        if isinstance(request, LargeMessage):
            raise NotForStreams(answers_in_pieces=False)
        request_id = request.id
        number = next(self._numbers)
        # The caller's id stays readable on the way.
        call_id = f"{number}:{request_id}" if request_id else str(number)
        if remaining_s == math.inf:
            remaining_s = None
        try:
            request.id = call_id
            if remaining_s is not None:
                remaining_us = int(min(remaining_s, LONGEST_TOLD_S) * 1e6)
                request.parameters[REMAINING_PARAMETER].int64_param = remaining_us
            data = request.SerializeToString()
        finally:
            request.id = request_id
            if remaining_s is not None:
                request.parameters.pop(REMAINING_PARAMETER, None)
        if len(data) > MAX_MESSAGE_BYTES:
            raise NotForStreams(answers_in_pieces=False)
        call = self._calls[call_id] = StreamCall(call_id, request_id, wait)
        return call, data

    def forget(self, call: StreamCall[Wait]) -> None:
        """This call was never sent."""
        self._calls.pop(call.id, None)

    def match(self, message: pb.ModelStreamInferResponse) -> StreamCall[Wait]:
        """The call that a message answers, which is then over unless more messages follow.

        Raises:
            InvalidResponse: no call has the message's id.
        """
        response = message.infer_response
        call = self._calls.get(response.id)
        if call is None:
            raise InvalidResponse(f"expected the id of a call on this stream, got '{response.id}'")
        if message.error_message or _final(response):
            self._calls.pop(call.id, None)
        return call

    def drain(self) -> Iterator[StreamCall[Wait]]:
        """Take every call that still waits, one by one: each is the caller's to settle before the
        next is taken. Other threads may open and forget calls meanwhile."""
        while True:
            try:
                _, call = self._calls.popitem()
            except KeyError:  # asked first, the last one could be forgotten in between
                return
            yield call


def unpack(message: pb.ModelStreamInferResponse, request_id: str) -> pb.ModelInferResponse:
    """What a unary call with this id would have been answered with.

    Raises:
        ServerError: the message is an error.
        NotForStreams: the message is one of several.
    """
    response = message.infer_response
    if message.error_message:
        raise _server_error(message, request_id)
    if FINAL_PARAMETER in response.parameters:
        if not response.parameters[FINAL_PARAMETER].bool_param:
            raise NotForStreams(answers_in_pieces=True)
        del response.parameters[FINAL_PARAMETER]
    response.id = request_id
    return response


def bundle_of_requests(messages: Sequence[bytes]) -> bytes:
    """One message that holds these, each a serialised ModelInferRequest."""
    if len(messages) == 1:
        return messages[0]
    return pb.ModelInferRequest(raw_input_contents=messages).SerializeToString()


def bundle_of_answers(messages: Sequence[bytes]) -> pb.ModelStreamInferResponse:
    """One message that holds these, each a serialised ModelStreamInferResponse."""
    bundle = pb.ModelStreamInferResponse()
    bundle.infer_response.raw_output_contents.extend(messages)
    return bundle


def unbundle(message: pb.ModelStreamInferResponse) -> Sequence[pb.ModelStreamInferResponse]:
    """The answers that came in one message.

    Raises:
        InvalidResponse: it is neither an answer with an id nor a bundle of them.
    """
    response = message.infer_response
    if response.id or not response.raw_output_contents:
        return (message,)
    try:
        return [pb.ModelStreamInferResponse.FromString(raw) for raw in response.raw_output_contents]
    except DecodeError as error:
        raise InvalidResponse(f"expected a bundle of answers: {error}") from None


def cancellation(call: StreamCall[Wait]) -> bytes:
    """The message that gives a call up."""
    request = pb.ModelInferRequest()
    request.parameters[CANCEL_PARAMETER].string_param = call.id
    return request.SerializeToString()


def speaks_extension(answer: object) -> bool:
    """Whether the server that answered `PROBE` with this speaks the extension.

    Raises:
        InvalidResponse: it does not even repeat the id, or gave no answer.
    """
    if not isinstance(answer, pb.ModelStreamInferResponse):
        raise ENDED
    response = answer.infer_response
    if response.id != "probe":
        raise InvalidResponse(f"expected an answer to 'probe', got one to '{response.id}'")
    return CODE_PARAMETER in response.parameters


# -- errors ---------------------------------------------------------------------------------


def pack_error(
    request_id: str, code: int, text: str, reason: str, retry_after_s: float | None
) -> pb.ModelStreamInferResponse:
    """The message of a stream for a request that failed; see `headrace.errors.pack_status`."""
    # An empty text would read as success.
    message = pb.ModelStreamInferResponse(error_message=text or reason)
    response = message.infer_response
    response.id = request_id
    response.parameters[FINAL_PARAMETER].bool_param = True
    response.parameters[CODE_PARAMETER].int64_param = code
    response.parameters[REASON_PARAMETER].string_param = reason
    if retry_after_s is not None:
        response.parameters[RETRY_PARAMETER].int64_param = round(retry_after_s * 1e6)
    return message


def broken(why: Exception, request_id: str) -> ServerError:
    """What a call gets whose stream ended first: the same as when a connection breaks.

    The status of a stream is not that of its calls: only a server that cannot be reached, or is
    about to leave and says so, says the same to each of them.
    """
    if isinstance(why, Unavailable):
        return Unavailable(why.code, why.message, why.reason, request_id, why.retry_after_s)
    return error_of_code(
        grpc.StatusCode.UNAVAILABLE, f"the stream broke: {why}", request_id=request_id
    )


def deadline_exceeded(request_id: str) -> ServerError:
    """What a call gets whose time is up before its answer came."""
    return error_of_code(
        grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", request_id=request_id
    )


# An error of a stream carries a text alone. These parts of the texts of Triton's servers tell the
# status that a unary call would have ended with.
_CODES: tuple[tuple[str, grpc.StatusCode], ...] = (
    ("has no available versions", grpc.StatusCode.UNAVAILABLE),
    ("is not ready", grpc.StatusCode.UNAVAILABLE),
    ("Exceeds maximum queue size", grpc.StatusCode.UNAVAILABLE),
    ("Request timeout expired", grpc.StatusCode.UNAVAILABLE),
    ("Server is stopping", grpc.StatusCode.UNAVAILABLE),
    ("Server not ready", grpc.StatusCode.UNAVAILABLE),
    ("is not found", grpc.StatusCode.NOT_FOUND),
    ("Unable to find shared memory region", grpc.StatusCode.NOT_FOUND),
    ("bytes to hold the results", grpc.StatusCode.INTERNAL),
    ("batch-size must be", grpc.StatusCode.INVALID_ARGUMENT),
    ("unexpected shape for input", grpc.StatusCode.INVALID_ARGUMENT),
    ("data-type is", grpc.StatusCode.INVALID_ARGUMENT),
    ("inputs but got", grpc.StatusCode.INVALID_ARGUMENT),
    ("unexpected inference input", grpc.StatusCode.INVALID_ARGUMENT),
    ("unexpected inference output", grpc.StatusCode.INVALID_ARGUMENT),
    ("input byte size mismatch", grpc.StatusCode.INVALID_ARGUMENT),
    ("unexpected number of", grpc.StatusCode.INVALID_ARGUMENT),
    ("batch size does not match other inputs", grpc.StatusCode.INVALID_ARGUMENT),
    ("contents field must not be specified", grpc.StatusCode.INVALID_ARGUMENT),
    ("must specify the START flag", grpc.StatusCode.INVALID_ARGUMENT),
    ("cancelled", grpc.StatusCode.CANCELLED),
)


def _server_error(message: pb.ModelStreamInferResponse, request_id: str) -> ServerError:
    text, parameters = message.error_message, message.infer_response.parameters
    if CODE_PARAMETER not in parameters:
        code = next((code for part, code in _CODES if part in text), grpc.StatusCode.UNKNOWN)
        return error_of_code(code, text, request_id=request_id)
    number = parameters[CODE_PARAMETER].int64_param
    code = _STATUS.get(number, grpc.StatusCode.UNKNOWN)
    reason = parameters[REASON_PARAMETER].string_param or None
    retry_after_s = None
    if RETRY_PARAMETER in parameters:
        retry_after_s = parameters[RETRY_PARAMETER].int64_param / 1e6
    return error_of_code(code, text, reason, request_id, retry_after_s)


_STATUS = {code.value[0]: code for code in grpc.StatusCode}


def _final(response: pb.ModelInferResponse) -> bool:
    parameters = response.parameters
    return FINAL_PARAMETER not in parameters or parameters[FINAL_PARAMETER].bool_param


# -- all streams ----------------------------------------------------------------------------


class Stream(Protocol):
    """What the pool looks at."""

    @property
    def in_flight(self) -> int:
        """Calls on it that are not answered yet."""


AnyStream = TypeVar("AnyStream", bound=Stream)


class StreamPool(Generic[AnyStream]):
    """The open streams of one client, and which way a call goes: over one of them, or alone.

    A call goes alone until its model has answered one such call (a model that answers in pieces
    never does), while no stream is open or all are full, and, in the mode `auto`, while few calls
    are in flight. Streams are opened beside the calls, never in their way, and again with growing
    pauses where that fails or does not last.

    Not safe to share between threads.
    """

    def __init__(self, mode: Multiplex, clock: Callable[[], float] = time.monotonic) -> None:
        if mode not in (True, "auto"):
            raise ValueError(f"expected multiplex to be True, False or 'auto', got {mode!r}")
        self.under_load = mode == "auto"
        self.in_flight = 0
        """Calls under way, whichever way they went; the client counts them."""
        self.streams: list[AnyStream] = []
        self._clock = clock
        self._models: set[tuple[str, str]] = set()
        self._opening = False
        self._opened_s: dict[AnyStream, float] = {}
        self._pause_s = FIRST_PAUSE_S
        self._next_s = 0.0

    def choose(self, request: pb.ModelInferRequest) -> AnyStream | None:
        """The stream for this call; None if it goes alone."""
        if not self.streams or (request.model_name, request.model_version) not in self._models:
            return None
        if self.under_load and self.in_flight < UNDER_LOAD:
            return None
        # One after the other rather than in turn: what shares a stream shares messages.
        for stream in self.streams:
            if stream.in_flight < BUSY:
                return stream
        stream = min(self.streams, key=_in_flight)
        return stream if stream.in_flight < MAX_IN_FLIGHT else None

    def answered_alone(self, request: pb.ModelInferRequest) -> None:
        """A unary call was answered, so calls of this model may take streams."""
        self._models.add((request.model_name, request.model_version))

    def answered_in_pieces(self, request: pb.ModelInferRequest) -> None:
        """Calls of this model go alone from now on."""
        self._models.discard((request.model_name, request.model_version))

    def should_open(self) -> bool:
        """Whether to open one more stream now. Who is told so reports `opened` or `failed`."""
        if self._opening or len(self.streams) >= MAX_STREAMS or not self._models:
            return False
        if self.under_load and self.in_flight < UNDER_LOAD:
            return False
        if any(stream.in_flight < BUSY for stream in self.streams):
            return False
        if self._clock() < self._next_s:
            return False
        self._opening = True
        return True

    def takes(self, *, extended: bool) -> bool:
        """Whether streams of a server that does or does not speak the extension are used.

        Others answer in the order of the requests, so one slow call holds up those behind it:
        a price that only who asks for streams pays.
        """
        return extended or not self.under_load

    def opened(self, stream: AnyStream) -> None:
        """The stream has answered the probe."""
        self._opening = False
        self.streams.append(stream)
        self._opened_s[stream] = self._clock()

    def failed(self) -> None:
        """The stream could not be opened, or nothing on the other side understands it."""
        self._opening = False
        self._pause()

    def ended(self, stream: AnyStream) -> None:
        """The stream is over."""
        self.streams.remove(stream)
        if self._clock() - self._opened_s.pop(stream) >= STABLE_S:
            self._pause_s = FIRST_PAUSE_S
        self._pause()

    def _pause(self) -> None:
        self._next_s = self._clock() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 4 * self._pause_s)


def _in_flight(stream: Stream) -> int:
    return stream.in_flight

"""Matching calls and answers on a stream, errors without a status, and when streams are used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import (
    Cancelled,
    InternalError,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    ServerError,
    Unavailable,
)
from headrace.multiplexing import (
    BUSY,
    LONGEST_PAUSE_S,
    MAX_IN_FLIGHT,
    MAX_MESSAGE_BYTES,
    MAX_STREAMS,
    UNDER_LOAD,
    NotForStreams,
    StreamCall,
    StreamCalls,
    StreamPool,
    broken,
    bundle_of_answers,
    bundle_of_requests,
    cancellation,
    pack_error,
    speaks_extension,
    unbundle,
    unpack,
)
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.core.errors import Reason, ServingError
from headrace_server.transport.status import STATUS, public_text


def request(request_id: str = "", model: str = "m", nbytes: int = 4) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[bytes(nbytes)])


def opened(calls: StreamCalls[None], *args: str) -> tuple[StreamCall[None], pb.ModelInferRequest]:
    call, data = calls.open(request(*args), None, None)
    return call, pb.ModelInferRequest.FromString(data)


def answer(call: StreamCall[None], *, final: bool | None = None) -> pb.ModelStreamInferResponse:
    message = pb.ModelStreamInferResponse()
    message.infer_response.id = call.id
    if final is not None:
        message.infer_response.parameters["triton_final_response"].bool_param = final
    return message


# -- calls and answers ----------------------------------------------------------------------


def test_calls_with_the_same_id_are_told_apart_and_keep_it() -> None:
    calls: StreamCalls[None] = StreamCalls()
    (one, sent_one), (two, sent_two) = opened(calls, "mine"), opened(calls, "mine")
    assert sent_one.id != sent_two.id
    assert "mine" in sent_one.id
    assert calls.match(answer(two)) is two
    assert calls.match(answer(one)) is one
    assert unpack(answer(one), one.request_id).id == "mine"
    assert len(calls) == 0


def test_request_is_left_as_it_was() -> None:
    calls: StreamCalls[None] = StreamCalls()
    message = request("mine")
    before = message.SerializeToString()
    _, data = calls.open(message, None, 1.5)
    assert message.SerializeToString() == before
    sent = pb.ModelInferRequest.FromString(data)
    assert sent.parameters["headrace_remaining_us"].int64_param == 1_500_000


@pytest.mark.parametrize(("remaining_s", "told_us"), [(math.inf, None), (1e13, 2**53)])
def test_deadline_that_is_out_of_range_is_told_as_near_as_can_be(
    remaining_s: float, told_us: int | None
) -> None:
    calls: StreamCalls[None] = StreamCalls()
    message = request("mine")
    before = message.SerializeToString()
    _, data = calls.open(message, None, remaining_s)
    assert message.SerializeToString() == before
    parameters = pb.ModelInferRequest.FromString(data).parameters
    assert [p.int64_param for p in parameters.values()] == ([] if told_us is None else [told_us])


@pytest.mark.parametrize("stray", ["", "7", "mine"])
def test_answer_that_belongs_to_no_call_is_invalid(stray: str) -> None:
    calls: StreamCalls[None] = StreamCalls()
    opened(calls, "mine")
    message = pb.ModelStreamInferResponse()
    message.infer_response.id = stray
    with pytest.raises(InvalidResponse, match="expected the id of a call on this stream"):
        calls.match(message)


def test_call_that_is_answered_in_pieces_is_not_for_streams_and_ends_with_the_last() -> None:
    calls: StreamCalls[None] = StreamCalls()
    call, _ = opened(calls)
    assert calls.match(answer(call, final=False)) is call
    with pytest.raises(NotForStreams) as raised:
        unpack(answer(call, final=False), "")
    assert raised.value.answers_in_pieces
    assert calls.match(answer(call, final=False)) is call
    assert calls.match(answer(call, final=True)) is call
    assert len(calls) == 0


def test_final_flag_is_no_parameter_of_the_answer() -> None:
    calls: StreamCalls[None] = StreamCalls()
    call, _ = opened(calls)
    message = answer(call, final=True)
    message.infer_response.parameters["own"].int64_param = 1
    assert list(unpack(message, "").parameters) == ["own"]


def test_large_requests_are_not_for_streams() -> None:
    calls: StreamCalls[None] = StreamCalls()
    with pytest.raises(NotForStreams) as raised:
        calls.open(request(nbytes=MAX_MESSAGE_BYTES), None, None)
    assert not raised.value.answers_in_pieces
    assert len(calls) == 0


class LastForgotten(dict[str, StreamCall[None]]):
    """Calls of which another thread forgets the last one at the worst moment."""

    def popitem(self) -> tuple[str, StreamCall[None]]:
        if len(self) == 1:
            self.clear()
        return super().popitem()


def test_calls_that_still_wait_are_taken_though_another_thread_forgets_one() -> None:
    calls: StreamCalls[None] = StreamCalls()
    _, two, three = (opened(calls)[0] for _ in range(3))
    calls._calls = LastForgotten(calls._calls)
    drained = iter(calls.drain())
    assert next(drained) is three
    assert len(calls) == 2, "each is settled before the next is taken"
    assert list(drained) == [two]


def test_cancellation_names_the_call() -> None:
    calls: StreamCalls[None] = StreamCalls()
    call, sent = opened(calls, "mine")
    message = pb.ModelInferRequest.FromString(cancellation(call))
    assert message.model_name == ""
    assert message.parameters["headrace_cancel"].string_param == sent.id


@given(st.lists(st.text(max_size=5), min_size=1, max_size=20))
def test_bundles_come_apart_as_they_were_put_together(texts: list[str]) -> None:
    sent = [request(text).SerializeToString() for text in texts]
    bundle = pb.ModelInferRequest.FromString(bundle_of_requests(sent))
    assert [bundle.SerializeToString()] == sent or list(bundle.raw_input_contents) == sent
    answers = [pack_error(text, 5, "no", "why", None) for text in texts]
    packed = bundle_of_answers([message.SerializeToString() for message in answers])
    assert list(unbundle(packed)) == answers


def test_bundle_of_something_else_is_invalid() -> None:
    with pytest.raises(InvalidResponse, match="expected a bundle of answers"):
        unbundle(bundle_of_answers([b"\xff"]))


# -- errors ---------------------------------------------------------------------------------


def raised_by(message: pb.ModelStreamInferResponse) -> ServerError:
    with pytest.raises(ServerError) as raised:
        unpack(message, "mine")
    return raised.value


def test_error_of_our_server_is_that_of_a_unary_call() -> None:
    code = grpc.StatusCode.UNAVAILABLE.value[0]
    error = raised_by(pack_error("0:mine", code, "full", "queue_full", 0.25))
    assert isinstance(error, Unavailable)
    assert (error.message, error.reason, error.request_id) == ("full", "queue_full", "mine")
    assert error.retry_after_s == 0.25
    assert raised_by(pack_error("0", 5, "", "gone", None)).retry_after_s is None


def test_error_with_an_empty_text_is_an_error() -> None:
    assert isinstance(raised_by(pack_error("0", 5, "", "gone", None)), NotFound)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Request for unknown model: 'm' is not found", NotFound),
        ("Request for unknown model: 'm' version 3 is not found", NotFound),
        ("Request for unknown model: 'm' has no available versions", Unavailable),
        ("Exceeds maximum queue size", Unavailable),
        ("inference request batch-size must be <= 8 for 'm'", InvalidRequest),
        ("expected 2 inputs but got 1 inputs for model 'm'", InvalidRequest),
        ("something that nobody has seen before", InternalError),
    ],
)
def test_error_of_another_server_is_told_by_its_text(text: str, kind: type[ServerError]) -> None:
    error = raised_by(pb.ModelStreamInferResponse(error_message=text))
    assert type(error) is kind
    assert (error.message, error.reason, error.request_id) == (text, None, "mine")


WORDS_OF_OUR_OWN = {
    *(Reason.DUPLICATE_INPUT, Reason.MALFORMED_CONTENTS, Reason.WRONG_RAW_COUNT),
    Reason.MALFORMED_MESSAGE,
    *(Reason.UNEQUAL_LENGTHS, Reason.INVALID_PARAMETER, Reason.PREDICTED_LATE, Reason.OVERLOADED),
    *(Reason.DEADLINE_EXCEEDED, Reason.WORKER_LOST, Reason.MODEL_FAILED, Reason.UNSUPPORTED),
    *(Reason.OUT_OF_MEMORY, Reason.ANSWERS_UNREAD),
    *(Reason.MODEL_CONTROL_REFUSED, Reason.NOT_IN_REPOSITORY, Reason.LOAD_FAILED),
    Reason.INTERNAL,
    *(Reason.REQUEST_TOO_LARGE, Reason.OBJECTIVE_MISSED, Reason.DUPLICATE_OUTPUT),
    *(Reason.REGION_EXISTS, Reason.REGION_UNUSABLE, Reason.REGIONS_OVERLAP),
    *(Reason.UNAUTHENTICATED, Reason.NOT_ALLOWED, Reason.RATE_LIMITED),
}


@pytest.mark.parametrize("reason", [r for r in Reason if r not in WORDS_OF_OUR_OWN])
def test_texts_that_are_tritons_tell_the_same_status_as_our_table(reason: Reason) -> None:
    text = public_text(ServingError(reason))
    assert raised_by(pb.ModelStreamInferResponse(error_message=text)).code is STATUS[reason].code


@pytest.mark.parametrize(
    ("why", "reason", "retry_after_s"),
    [
        (Unavailable(grpc.StatusCode.UNAVAILABLE, "refused"), None, None),
        (Unavailable(grpc.StatusCode.UNAVAILABLE, "bye", "stopping", "", 1.0), "stopping", 1.0),
        (Cancelled(grpc.StatusCode.CANCELLED, "by a proxy"), None, None),
        (InvalidResponse("a stray answer"), None, None),
    ],
)
def test_broken_stream_is_a_broken_connection(
    why: Exception, reason: str | None, retry_after_s: float | None
) -> None:
    error = broken(why, "mine")
    assert type(error) is Unavailable
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert (error.reason, error.retry_after_s, error.request_id) == (reason, retry_after_s, "mine")


def test_who_answers_the_probe_is_known_by_it() -> None:
    assert speaks_extension(pack_error("probe", 5, "no", "unknown_model", None))
    triton = pb.ModelStreamInferResponse(error_message="no")
    with pytest.raises(InvalidResponse):
        speaks_extension(triton)
    triton.infer_response.id = "probe"
    assert not speaks_extension(triton)
    with pytest.raises(InvalidResponse):
        speaks_extension(grpc.aio.EOF)


# -- which way ------------------------------------------------------------------------------


@dataclass(eq=False)
class Open:
    """An open stream."""

    in_flight: int = 0


class Time:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def pool(clock: Time) -> StreamPool[Open]:
    return StreamPool(True, clock)


def with_stream(pool: StreamPool[Open], **state: int) -> Open:
    pool.answered_alone(request())
    assert pool.should_open()
    stream = Open(**state)
    pool.opened(stream)
    return stream


def test_streams_are_opened_once_a_model_has_answered(pool: StreamPool[Open]) -> None:
    assert not pool.should_open()
    assert pool.choose(request()) is None
    stream = with_stream(pool)
    assert pool.choose(request()) is stream
    assert pool.choose(request(model="other")) is None


def test_one_stream_is_opened_at_a_time(pool: StreamPool[Open]) -> None:
    pool.answered_alone(request())
    assert pool.should_open()
    assert not pool.should_open()
    pool.opened(Open(BUSY))
    assert pool.should_open()


def test_calls_fill_one_stream_before_they_take_the_next(pool: StreamPool[Open]) -> None:
    first = with_stream(pool, in_flight=BUSY)
    second = with_stream(pool, in_flight=0)
    assert pool.choose(request()) is second
    second.in_flight = BUSY + 5
    assert pool.choose(request()) is first
    first.in_flight = second.in_flight = MAX_IN_FLIGHT
    assert pool.choose(request()) is None


def test_streams_are_few(pool: StreamPool[Open]) -> None:
    for _ in range(MAX_STREAMS):
        with_stream(pool, in_flight=MAX_IN_FLIGHT)
    assert not pool.should_open()


def test_model_that_answers_in_pieces_goes_alone(pool: StreamPool[Open]) -> None:
    with_stream(pool)
    pool.answered_in_pieces(request())
    assert pool.choose(request()) is None


def test_streams_that_cannot_be_opened_are_tried_less_and_less(
    pool: StreamPool[Open], clock: Time
) -> None:
    pool.answered_alone(request())
    pauses = []
    for _ in range(7):
        started = clock.now
        while not pool.should_open():
            clock.now += 0.5
        pauses.append(clock.now - started)
        pool.failed()
    assert pauses == [0, 1, 4, 16, 64, 256, LONGEST_PAUSE_S]


def test_streams_that_can_never_be_opened_are_tried_for_ever(
    pool: StreamPool[Open], clock: Time
) -> None:
    pool.answered_alone(request())
    for _ in range(1_000):
        assert pool.should_open()
        pool.failed()
        clock.now += LONGEST_PAUSE_S


def test_stream_that_lasted_does_not_speak_against_the_next(
    pool: StreamPool[Open], clock: Time
) -> None:
    for lasted_s, pause_s in ((0.0, 1.0), (0.0, 4.0), (100.0, 1.0)):
        stream = with_stream(pool)
        clock.now += lasted_s
        pool.ended(stream)
        assert pool.choose(request()) is None
        clock.now += pause_s - 0.01
        assert not pool.should_open()
        clock.now += 0.02


def test_under_load_only_the_loaded_take_streams_of_servers_that_answer_in_any_order() -> None:
    pool: StreamPool[Open] = StreamPool("auto")
    assert pool.takes(extended=True)
    assert not pool.takes(extended=False)
    pool.answered_alone(request())
    pool.in_flight = UNDER_LOAD - 1
    assert not pool.should_open()
    pool.in_flight = UNDER_LOAD
    stream = with_stream(pool)
    assert pool.choose(request()) is stream
    pool.in_flight = UNDER_LOAD - 1
    assert pool.choose(request()) is None
    assert StreamPool(True).takes(extended=False)


def test_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected multiplex to be True, False or 'auto'"):
        StreamPool("always")  # type: ignore[arg-type]

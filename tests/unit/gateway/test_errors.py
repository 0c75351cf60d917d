"""Every way in which a call over gRPC can end has a status over HTTP."""

from __future__ import annotations

import grpc
import pytest

from headrace.errors import ServerError, error_of_code
from headrace_server.core.errors import Reason
from headrace_server.gateway.errors import HttpError, http_error
from headrace_server.gateway.room import Room, Share
from headrace_server.transport.status import STATUS


@pytest.mark.parametrize("reason", Reason)
def test_reasons_have_the_status_of_their_table(reason: Reason) -> None:
    status = STATUS[reason]
    error = http_error(ServerError(status.code, "text", reason.value, retry_after_s=0.1))
    assert (error.status, error.text, error.reason) == (status.http, "text", reason.value)
    assert error.body() == {"error": "text", "reason": reason.value}
    challenge = {"WWW-Authenticate": "Bearer"} if reason is Reason.UNAUTHENTICATED else {}
    assert error.headers() == {"Retry-After": "1", **challenge}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_codes_without_a_reason_of_ours_have_one_too(code: grpc.StatusCode) -> None:
    for reason in (None, "of another server"):
        error = http_error(error_of_code(code, "text", reason))
        assert 400 <= error.status < 600


def test_what_is_said_in_place_of_a_server_that_does_not_answer_names_no_private_path() -> None:
    code = grpc.StatusCode.UNAVAILABLE
    error = http_error(error_of_code(code, "unix:/tmp/headrace-x/engine: refused"))
    assert (error.status, error.text) == (503, "the server behind this port does not answer")
    assert error.headers() == {"Retry-After": "1"}
    assert http_error(error_of_code(code, "text", "of another")).text == "text"
    assert HttpError(500, "text").body() == {"error": "text"}


def test_room_is_for_all_together_and_whoever_finds_none_is_told_at_once() -> None:
    room = Room(10)
    one, other = Share(room), Share(room)
    one.take(5)
    one.take(1)
    other.take(4)
    with pytest.raises(HttpError, match="expected room for 1 bytes more") as error:
        other.take(1)
    assert error.value.status == 503
    assert error.value.headers() == {"Retry-After": "1"}
    one.give_back()
    one.give_back()
    other.take(6)
    assert room.taken == 10


def test_whoever_is_alone_has_room_for_anything() -> None:
    room = Room(10)
    one, other = Share(room), Share(room)
    one.take(5)
    one.take(50)
    with pytest.raises(HttpError, match="the bodies of all calls have 55 of 10"):
        other.take(1)
    one.give_back()
    other.take(1)
    with pytest.raises(HttpError):
        one.take(50)

"""The table of errors: complete, and with the texts that stock clients match on."""

from __future__ import annotations

import string

import grpc
import pytest

from headrace.multiplexing import pack_error
from headrace_server.core.errors import Reason, ServingError
from headrace_server.transport.status import (
    MAX_RETRY_AFTER_S,
    STATUS,
    public_text,
    retry_after_s,
)

HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.CANCELLED: 499,
}


def test_every_reason_has_a_row() -> None:
    assert set(STATUS) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_http_code_follows_from_the_grpc_code(reason: Reason) -> None:
    assert STATUS[reason].http == HTTP[STATUS[reason].code]


@pytest.mark.parametrize("reason", Reason)
def test_text_reads_well_even_when_a_detail_is_missing(reason: Reason) -> None:
    names = {name for _, name, _, _ in string.Formatter().parse(STATUS[reason].text) if name}
    given = dict.fromkeys(names, "X")
    assert "{" not in public_text(ServingError(reason, **given))
    assert public_text(ServingError(reason)).count("?") == STATUS[reason].text.count("{")


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason.QUEUE_FULL, "Exceeds maximum queue size"),
        (Reason.QUEUE_TIMEOUT, "Request timeout expired"),
        (Reason.STOPPING, "Server is stopping"),
        (Reason.MODEL_CONTROL_REFUSED, "explicit model load / unload is not allowed"),
    ],
)
def test_texts_that_stock_clients_match_on(reason: Reason, text: str) -> None:
    assert text in STATUS[reason].text
    assert STATUS[reason].code is grpc.StatusCode.UNAVAILABLE


def test_only_refusals_that_pass_by_themselves_suggest_a_retry() -> None:
    retried = {reason for reason in Reason if STATUS[reason].retry_after_s is not None}
    assert retried == {
        Reason.MODEL_UNAVAILABLE,
        Reason.QUEUE_FULL,
        Reason.PREDICTED_LATE,
        Reason.OVERLOADED,
        Reason.OBJECTIVE_MISSED,
        Reason.STOPPING,
        Reason.RATE_LIMITED,
        Reason.ANSWERS_UNREAD,
    }


def test_an_error_that_knows_better_when_to_retry_is_believed() -> None:
    assert retry_after_s(ServingError(Reason.RATE_LIMITED, retry_after_s=7.5)) == 7.5
    assert retry_after_s(ServingError(Reason.RATE_LIMITED)) == 1.0
    assert retry_after_s(ServingError(Reason.CANCELLED)) is None


def test_the_time_after_which_to_try_again_fits_into_what_says_it() -> None:
    error = ServingError(Reason.RATE_LIMITED, limit="1", unit="bytes", retry_after_s=9.2e13)
    assert retry_after_s(error) == MAX_RETRY_AFTER_S
    code = STATUS[error.reason].code.value[0]
    packed = pack_error("id", code, public_text(error), error.reason.value, retry_after_s(error))
    assert packed.infer_response.parameters["headrace_retry_after_us"].int64_param > 0

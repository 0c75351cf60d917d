"""What the end of a call is worth in the soak."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from bench.checked_models import SMALL
from bench.soak.calls import Call, End, Tally, bad_calls, judge_answer, judge_error, valid_calls

from headrace import InferResult, ServerError

(CALL,) = valid_calls([SMALL], np.random.default_rng(0), 1)
BAD = Call("small", {}, None, frozenset({"wrong_input_count"}))
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def result(model: str = "small", request_id: str = "7", off_by: int = 0) -> InferResult:
    assert CALL.expected is not None
    return InferResult({"y": CALL.expected["y"] + off_by}, model, "1", request_id)


def test_an_answer_is_right_to_the_last_bit_or_wrong() -> None:
    assert judge_answer(CALL, "7", result())[0] is End.RIGHT
    assert judge_answer(CALL, "7", result(off_by=1))[0] is End.WRONG
    assert judge_answer(CALL, "8", result())[0] is End.WRONG
    assert judge_answer(CALL, "7", result(model="large"))[0] is End.WRONG
    assert judge_answer(BAD, "7", result())[0] is End.WRONG


@pytest.mark.parametrize(
    ("call", "code", "reason", "end"),
    [
        (CALL, UNAVAILABLE, "queue_full", End.REFUSED),
        (CALL, UNAVAILABLE, None, End.LOST),
        (CALL, grpc.StatusCode.INTERNAL, "internal", End.LOST),
        (CALL, grpc.StatusCode.INVALID_ARGUMENT, "wrong_shape", End.LOST),
        (CALL, grpc.StatusCode.DEADLINE_EXCEEDED, None, End.LATE),
        (BAD, grpc.StatusCode.INVALID_ARGUMENT, "wrong_input_count", End.RIGHT),
        (BAD, grpc.StatusCode.INVALID_ARGUMENT, "wrong_shape", End.WRONG),
        (BAD, UNAVAILABLE, "model_unavailable", End.REFUSED),
    ],
)
def test_an_error_is_worth_what_its_reason_says(
    call: Call, code: grpc.StatusCode, reason: str | None, end: End
) -> None:
    assert judge_error(call, ServerError(code, "text", reason))[0] is end


def test_success_leaves_out_who_was_cancelled() -> None:
    tally = Tally()
    for end in (End.RIGHT, End.RIGHT, End.RIGHT, End.REFUSED, End.CANCELLED):
        tally.count(CALL, end, "")
    tally.count(BAD, End.RIGHT, "")
    assert tally.success == 0.75


def test_bad_calls_say_why_they_must_be_refused() -> None:
    bad = bad_calls([CALL])
    assert len(bad) > 5
    assert all(call.refusals and not call.valid for call in bad)

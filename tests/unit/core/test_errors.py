"""Errors carry a reason and details."""

from __future__ import annotations

from headrace_server.core.errors import Reason, ServingError


def test_an_error_says_its_reason_and_details() -> None:
    error = ServingError(Reason.WRONG_DATATYPE, input="pixels", expected="FP32")
    assert str(error) == "wrong_datatype(input='pixels', expected='FP32')"
    assert error.reason is Reason.WRONG_DATATYPE
    assert error.details == {"input": "pixels", "expected": "FP32"}


def test_reasons_are_distinct_words() -> None:
    words = [reason.value for reason in Reason]
    assert len(set(words)) == len(words)
    assert all(word.replace("_", "").isalpha() and word.islower() for word in words)

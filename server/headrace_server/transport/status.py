"""The one table from a reason to what the caller is told: codes, text, retry hint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from headrace_server.core.errors import Reason, ServingError
from headrace_server.rpc.head import clipped


@dataclass(frozen=True, slots=True)
class PublicStatus:
    """What a caller is told. `text` is a format string over the error's details.

    `retry_after_s`: when a retry makes sense, after how long; None when it makes none. An error
    that knows better has a detail of that name.
    """

    code: grpc.StatusCode
    http: int
    text: str
    retry_after_s: float | None = None


def _invalid(text: str) -> PublicStatus:
    return PublicStatus(grpc.StatusCode.INVALID_ARGUMENT, 400, text)


def _unavailable(text: str, retry_after_s: float | None) -> PublicStatus:
    return PublicStatus(grpc.StatusCode.UNAVAILABLE, 503, text, retry_after_s)


# Stock clients match on parts of these texts; see the tests that hold them.
STATUS: Mapping[Reason, PublicStatus] = MappingProxyType(
    {
        Reason.UNKNOWN_MODEL: PublicStatus(
            grpc.StatusCode.NOT_FOUND, 404, "Request for unknown model: '{model}' is not found"
        ),
        Reason.UNKNOWN_VERSION: PublicStatus(
            grpc.StatusCode.NOT_FOUND,
            404,
            "Request for unknown model: '{model}' version {version} is not found",
        ),
        Reason.MODEL_UNAVAILABLE: _unavailable(
            "Request for unknown model: '{model}' has no available versions: {why}", 1.0
        ),
        Reason.MALFORMED_MESSAGE: _invalid(
            "expected a serialised {expected}, got {got} other bytes"
        ),
        Reason.WRONG_INPUT_COUNT: _invalid(
            "expected {expected} inputs but got {got} inputs for model '{model}'; it takes {names}"
        ),
        Reason.UNKNOWN_INPUT: _invalid(
            "unexpected inference input '{input}' for model '{model}'; it takes {names}"
        ),
        Reason.DUPLICATE_INPUT: _invalid(
            "input '{input}' for model '{model}' is given more than once"
        ),
        Reason.UNKNOWN_OUTPUT: _invalid(
            "unexpected inference output '{output}' for model '{model}'; it gives {names}"
        ),
        Reason.DUPLICATE_OUTPUT: _invalid(
            "output '{output}' for model '{model}' is asked for more than once"
        ),
        Reason.WRONG_DATATYPE: _invalid(
            "inference input '{input}' data-type is '{got}', but model '{model}' expects "
            "'{expected}'"
        ),
        Reason.WRONG_SHAPE: _invalid(
            "unexpected shape for input '{input}' for model '{model}'. "
            "Expected {expected}, got {got}"
        ),
        Reason.WRONG_BYTE_COUNT: _invalid(
            "input byte size mismatch for input '{input}' for model '{model}'. "
            "Expected {expected}, got {got}"
        ),
        Reason.WRONG_ELEMENT_COUNT: _invalid(
            "unexpected number of elements for input '{input}' for model '{model}'. "
            "Expected {expected}, got {got}"
        ),
        Reason.MALFORMED_CONTENTS: _invalid(
            "the contents of input '{input}' for model '{model}' are malformed: {problem}"
        ),
        Reason.MIXED_CONTENTS: _invalid(
            "contents field must not be specified when using raw_input_contents for '{input}' "
            "for model '{model}'"
        ),
        Reason.WRONG_RAW_COUNT: _invalid(
            "expected {expected} raw input contents, one for each input not in shared memory, "
            "but got {got} for model '{model}'"
        ),
        Reason.UNEQUAL_ROWS: _invalid(
            "input '{input}' batch size does not match other inputs for '{model}'. "
            "Expected {expected}, got {got}"
        ),
        Reason.UNEQUAL_LENGTHS: _invalid(
            "dimension {dimension} of input '{input}' for model '{model}' has another length than "
            "those of its request that must be the same. Expected {expected}, got {got}"
        ),
        Reason.BATCH_TOO_LARGE: _invalid(
            "inference request batch-size must be <= {limit} for '{model}'; got {got}"
        ),
        Reason.REQUEST_TOO_LARGE: _invalid(
            "the inputs of this request for model '{model}' are too large for any batch. "
            "Expected at most {limit} bytes, got {got}"
        ),
        Reason.INVALID_PARAMETER: _invalid(
            "parameter '{parameter}' for model '{model}': {problem}"
        ),
        Reason.UNKNOWN_REGION: PublicStatus(
            grpc.StatusCode.NOT_FOUND, 404, "Unable to find shared memory region: '{region}'"
        ),
        Reason.REGION_EXISTS: PublicStatus(
            grpc.StatusCode.ALREADY_EXISTS,
            409,
            "shared memory region '{region}' already in manager",
        ),
        Reason.REGION_UNUSABLE: _invalid("{problem}"),
        Reason.REGIONS_OVERLAP: _invalid(
            "outputs '{output}' and '{other}' for model '{model}' overlap in shared memory"
        ),
        # Not INVALID_ARGUMENT: that is how Triton tells it, and its clients know.
        Reason.REGION_TOO_SMALL: PublicStatus(
            grpc.StatusCode.INTERNAL,
            500,
            "shared memory size specified with the request for output '{output}' ({got} bytes) "
            "should be at least {expected} bytes to hold the results",
        ),
        Reason.QUEUE_FULL: _unavailable("Exceeds maximum queue size for model '{model}'", 0.1),
        Reason.QUEUE_TIMEOUT: _unavailable("Request timeout expired in the queue", None),
        Reason.PREDICTED_LATE: _unavailable(
            "the deadline of this request cannot be met by model '{model}' at its present load", 0.1
        ),
        Reason.OVERLOADED: _unavailable(
            "model '{model}' is overloaded: this request gave way so that others meet their "
            "deadlines",
            0.1,
        ),
        Reason.OBJECTIVE_MISSED: _unavailable(
            "model '{model}' could not begin this request within its latency objective", 0.1
        ),
        Reason.DEADLINE_EXCEEDED: PublicStatus(
            grpc.StatusCode.DEADLINE_EXCEEDED, 504, "the deadline passed before the request ran"
        ),
        Reason.STOPPING: _unavailable("Server is stopping, scheduler for model is stopping", 1.0),
        Reason.CANCELLED: PublicStatus(grpc.StatusCode.CANCELLED, 499, "the call was cancelled"),
        Reason.WORKER_LOST: _unavailable(
            "the worker of model '{model}' was lost while it ran this request, repeatedly", None
        ),
        Reason.MODEL_FAILED: PublicStatus(
            grpc.StatusCode.INTERNAL, 500, "model '{model}' failed to run this request"
        ),
        Reason.OUT_OF_MEMORY: PublicStatus(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            429,
            "the device of model '{model}' has too little memory for this request",
        ),
        Reason.UNAUTHENTICATED: PublicStatus(
            grpc.StatusCode.UNAUTHENTICATED,
            401,
            "expected the metadata 'authorization: Bearer TOKEN' with a token that this server "
            "knows",
        ),
        # The same whether or not there is such a model: names are nobody's business either.
        Reason.NOT_ALLOWED: PublicStatus(
            grpc.StatusCode.PERMISSION_DENIED, 403, "this token does not allow {what}"
        ),
        Reason.RATE_LIMITED: PublicStatus(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            429,
            "this token's limit of {limit} {unit} per second is used up",
            1.0,
        ),
        Reason.ANSWERS_UNREAD: PublicStatus(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            429,
            "expected the answers that this connection was given to be read, but {unread} bytes of "
            "them still wait",
            1.0,
        ),
        Reason.MODEL_CONTROL_REFUSED: _unavailable(
            "explicit model load / unload is not allowed when the server does not run with "
            "model control mode EXPLICIT (--model-control-mode explicit)",
            None,
        ),
        Reason.NOT_IN_REPOSITORY: PublicStatus(
            grpc.StatusCode.NOT_FOUND,
            404,
            "failed to load '{model}', failed to poll from model repository: there is no "
            "directory of that name",
        ),
        Reason.LOAD_FAILED: _invalid("load failed for model '{model}': {why}"),
        Reason.UNSUPPORTED: PublicStatus(
            grpc.StatusCode.UNIMPLEMENTED, 501, "{feature} is not supported by this server"
        ),
        Reason.INTERNAL: PublicStatus(
            grpc.StatusCode.INTERNAL,
            500,
            "internal error; the server's log has it under the id {incident}",
        ),
    }
)


def public_text(error: ServingError) -> str:
    """The text that a caller sees, clipped: details may quote what the caller sent, at any length.

    A detail that the text names and the error lacks reads '?'.
    """
    return clipped(STATUS[error.reason].text.format_map(_Details(error.details)), MAX_TEXT)


MAX_TEXT = 1_000
"""Bytes of UTF-8: it travels in trailers, which clients bound to some kilobytes, three times as
long where it is no ASCII, and once more in the details."""


MAX_RETRY_AFTER_S = 86_400.0
"""Of what a caller is told: a rate may be as small as one request a month, and what travels are
microseconds in 64 bits."""


def retry_after_s(error: ServingError) -> float | None:
    """After how many seconds a retry makes sense; None if it makes none."""
    told = error.details.get("retry_after_s")
    if not isinstance(told, float):
        return STATUS[error.reason].retry_after_s
    return min(told, MAX_RETRY_AFTER_S)


class _Details(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "?"

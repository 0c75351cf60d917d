"""What can be wrong with a call over HTTP, and the one table from gRPC's codes to its statuses."""

from __future__ import annotations

import math
from http import HTTPStatus

import grpc

from headrace.errors import ServerError
from headrace_server.core.errors import Reason, ServingError
from headrace_server.transport.status import STATUS, public_text, retry_after_s

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""As google.rpc.Code maps them to HTTP; whatever is missing is 500. Where a reason came along, the
table of reasons goes before it."""

UNREACHABLE_S = 1.0
"""After how long another attempt makes sense where the engine's process does not answer."""

_REASONS = {reason.value: reason for reason in Reason}


class HttpError(Exception):
    """A call that gets no answer: the status, and what its body says.

    Args:
        reason: why, for programs; None where no table of ours has it.
        retry_after_s: after how long another attempt makes sense; None where it makes none.
    """

    def __init__(
        self,
        status: int,
        text: str,
        reason: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.reason = reason
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, str]:
        """What is sent as JSON: the text under `error`, as Triton's clients read it."""
        return {"error": self.text, **({} if self.reason is None else {"reason": self.reason})}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, where there is one to tell, and what a 401 must have."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def bad_request(text: str) -> HttpError:
    """Of a body or header that is none."""
    return HttpError(HTTPStatus.BAD_REQUEST, text)


def too_large(limit: int) -> HttpError:
    """Of a body beyond the limit."""
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {limit} bytes, got more"
    )


def refused(error: ServingError) -> HttpError:
    """A refusal of our own, as the table of reasons has it."""
    reason = error.reason
    return HttpError(STATUS[reason].http, public_text(error), reason.value, retry_after_s(error))


def http_error(error: ServerError) -> HttpError:
    """What the engine's process said, for whoever speaks HTTP; or that it says nothing."""
    reason = None if error.reason is None else _REASONS.get(error.reason)
    if error.reason is None and error.code is grpc.StatusCode.UNAVAILABLE:
        text = "the server behind this port does not answer"  # gRPC's own names private paths
        return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, text, retry_after_s=UNREACHABLE_S)
    status = CODES.get(error.code, 500) if reason is None else STATUS[reason].http
    return HttpError(status, error.message, error.reason, error.retry_after_s)

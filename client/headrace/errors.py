"""What can go wrong in a call, and the trailer that tells a program why.

    HeadraceError
    ├── InvalidInput            (also ValueError)    nothing was sent
    ├── InvalidResponse                              the answer contradicts itself
    └── ServerError             code, message, reason, request_id, retry_after_s
        ├── InvalidRequest      INVALID_ARGUMENT, OUT_OF_RANGE
        ├── NotFound            NOT_FOUND
        ├── Unavailable         UNAVAILABLE, RESOURCE_EXHAUSTED
        ├── DeadlineExceeded    DEADLINE_EXCEEDED    (also TimeoutError)
        ├── Cancelled           CANCELLED
        ├── Unimplemented       UNIMPLEMENTED
        ├── PermissionDenied    PERMISSION_DENIED
        ├── Unauthenticated     UNAUTHENTICATED
        └── InternalError       INTERNAL, UNKNOWN, DATA_LOSS

The server packs its reason and its retry hint with `pack_status` into the trailer that
`server_error` reads: a google.rpc.Status with ErrorInfo and RetryInfo, as
https://google.aip.dev/193 describes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from headrace.protocol import rpc_status_pb2

__all__ = [
    "DOMAIN",
    "STATUS_TRAILER",
    "Cancelled",
    "DeadlineExceeded",
    "HeadraceError",
    "InternalError",
    "InvalidInput",
    "InvalidRequest",
    "InvalidResponse",
    "NotFound",
    "PermissionDenied",
    "ServerError",
    "StatusDetails",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "client_closed",
    "error_of_code",
    "pack_status",
    "server_error",
    "unpack_status",
]

DOMAIN = "headrace"
"""The domain of every ErrorInfo that this project sends: who defines the reason."""

STATUS_TRAILER = "grpc-status-details-bin"
"""The key of the trailing metadata that holds a serialised google.rpc.Status."""

_NO_HTTP2 = re.compile(r"Failed parsing HTTP/2|Trying to connect an http1\.x server")
"""How gRPC says that something else than gRPC answered."""

_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


class HeadraceError(Exception):
    """Any failure of a call."""


class InvalidInput(HeadraceError, ValueError):
    """The arguments of a call make no request. Nothing was sent."""


class InvalidResponse(HeadraceError):
    """The server answered, but the answer contradicts itself."""


class ServerError(HeadraceError):
    """The call got a status other than OK, from the server or from the way there.

    Attributes:
        code: the gRPC status.
        message: its text, for people.
        reason: why, for programs; None if no Headrace server said so, as when the connection
            failed or another server speaks the same protocol.
        request_id: the id that the caller gave to the request; empty if none.
        retry_after_s: how long to wait before another attempt, in seconds, if the server says
            that another attempt makes sense; else None.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str | None = None,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.reason = reason
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        super().__init__(code, message, reason, request_id, retry_after_s)

    def __str__(self) -> str:
        facts = [self.code.name]
        if self.reason is not None:
            facts.append(f"reason {self.reason}")
        if self.request_id:
            facts.append(f"request {self.request_id!r}")
        return f"{self.message} ({', '.join(facts)})"


class InvalidRequest(ServerError):
    """The model cannot take this request, whenever it comes."""


class NotFound(ServerError):
    """The server has no such model or version."""


class Unavailable(ServerError):
    """The server cannot be reached, or has no room for the request now."""


class DeadlineExceeded(ServerError, TimeoutError):
    """The timeout passed first."""


class Cancelled(ServerError):
    """The call was cancelled, though not by the caller's own task."""


class Unimplemented(ServerError):
    """The server does not offer this."""


class PermissionDenied(ServerError):
    """The caller is known and may not do this."""


class Unauthenticated(ServerError):
    """The caller is not known."""


class InternalError(ServerError):
    """Something broke on the server's side."""


_CLASSES: Mapping[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}


@dataclass(frozen=True, slots=True)
class StatusDetails:
    """What a status trailer says. `reason` and `metadata` are those of our domain alone.

    `code` is the number of the gRPC status; `retry_after_s` is None where no retry is suggested.
    """

    code: int
    message: str
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None


def pack_status(
    code: int,
    message: str,
    reason: str,
    metadata: Mapping[str, str] | None = None,
    retry_after_s: float | None = None,
) -> bytes:
    """Value of the trailer `STATUS_TRAILER` for an error with `reason`.

    Args:
        code: number of the gRPC status.
        message: text of the gRPC status.
        reason: why, in the words of `DOMAIN`.
        metadata: facts about this occurrence.
        retry_after_s: seconds to wait before a retry; None if a retry makes no sense.
    """
    status = rpc_status_pb2.Status(code=code, message=message)
    info = rpc_status_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    status.details.add(type_url=_ERROR_INFO, value=info.SerializeToString())
    if retry_after_s is not None:
        seconds, nanos = divmod(round(retry_after_s * 1e9), 1_000_000_000)
        delay = rpc_status_pb2.Duration(seconds=seconds, nanos=nanos)
        retry = rpc_status_pb2.RetryInfo(retry_delay=delay)
        status.details.add(type_url=_RETRY_INFO, value=retry.SerializeToString())
    return status.SerializeToString()


def unpack_status(trailer: bytes) -> StatusDetails:
    """What `pack_status` packed; details of other types or domains are passed over.

    Raises:
        ValueError: `trailer` is not a serialised google.rpc.Status.
    """
    reason: str | None = None
    metadata: dict[str, str] = {}
    retry_after_s: float | None = None
    try:
        status = rpc_status_pb2.Status.FromString(trailer)
        for detail in status.details:
            if detail.type_url == _ERROR_INFO:
                info = rpc_status_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == DOMAIN:
                    reason, metadata = info.reason, dict(info.metadata)
            elif detail.type_url == _RETRY_INFO:
                delay = rpc_status_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    except DecodeError as error:
        raise ValueError(f"expected a serialised google.rpc.Status: {error}") from None
    return StatusDetails(status.code, status.message, reason, metadata, retry_after_s)


def server_error(failure: grpc.RpcError, request_id: str = "") -> ServerError:
    """The exception of this module for a failed gRPC call, from a blocking or an asyncio client."""
    code = failure.code()
    reason: str | None = None
    retry_after_s: float | None = None
    # grpc's types declare something else than the pairs it gives.
    trailer = cast("Iterable[tuple[str, str | bytes]] | None", failure.trailing_metadata())
    for key, value in trailer or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            try:
                details = unpack_status(value)
            except ValueError:
                continue  # a broken trailer must not hide the error it belongs to
            # Where a deadline passes while the end of the call is on its way, grpc gives the
            # deadline's code with the trailer of an end that it has passed over.
            if details.code == code.value[0]:
                reason, retry_after_s = details.reason, details.retry_after_s
    message = failure.details() or ""
    if _NO_HTTP2.search(message):
        message += (
            "; no gRPC without TLS there: is it the port of the metrics, or one that wants TLS?"
        )
    return error_of_code(code, message, reason, request_id, retry_after_s)


def error_of_code(
    code: grpc.StatusCode,
    message: str,
    reason: str | None = None,
    request_id: str = "",
    retry_after_s: float | None = None,
) -> ServerError:
    """The exception of this module for a status; the arguments are those of `ServerError`."""
    error_class = _CLASSES.get(code, ServerError)
    return error_class(code, message, reason, request_id, retry_after_s)


def client_closed(request_id: str = "") -> ServerError:
    """What a call gets whose client is closed."""
    return error_of_code(grpc.StatusCode.CANCELLED, "the client is closed", request_id=request_id)

"""From a gRPC failure to the SDK's exception: class, code, reason and retry hint."""

from __future__ import annotations

import pickle

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import errors
from headrace.errors import ServerError, StatusDetails, pack_status, server_error, unpack_status
from headrace.protocol import rpc_status_pb2


def failure(
    code: grpc.StatusCode, message: str | None, *trailers: tuple[str, bytes]
) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=message)


@given(
    st.integers(0, 16),
    st.text(),
    st.text(),
    st.dictionaries(st.text(), st.text(), max_size=3),
    st.none() | st.floats(0, 1e6),
)
def test_packed_status_comes_back(
    code: int, message: str, reason: str, metadata: dict[str, str], retry_after_s: float | None
) -> None:
    details = unpack_status(pack_status(code, message, reason, metadata, retry_after_s))
    # The wire counts whole nanoseconds.
    assert details.retry_after_s == pytest.approx(retry_after_s, abs=1e-9)
    expected = StatusDetails(code, message, reason, metadata, details.retry_after_s)
    assert details == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TimeoutError),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.ABORTED, errors.ServerError),
    ],
)
def test_code_decides_the_class(code: grpc.StatusCode, expected: type[Exception]) -> None:
    error = server_error(failure(code, "no"), "r1")
    assert isinstance(error, expected)
    assert (error.code, error.message, error.reason, error.request_id) == (code, "no", None, "r1")


def test_trailer_gives_reason_and_retry_hint() -> None:
    trailer = pack_status(14, "full", "queue_full", retry_after_s=0.25)
    error = server_error(
        failure(grpc.StatusCode.UNAVAILABLE, "full", (errors.STATUS_TRAILER, trailer)), "r2"
    )
    assert (error.reason, error.retry_after_s) == ("queue_full", 0.25)
    assert str(error) == "full (UNAVAILABLE, reason queue_full, request 'r2')"


def test_reason_of_another_domain_is_not_ours() -> None:
    info = rpc_status_pb2.ErrorInfo(reason="OTHER", domain="example.com")
    status = rpc_status_pb2.Status(code=14, message="no")
    status.details.add(
        type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString()
    )
    status.details.add(type_url="type.googleapis.com/google.rpc.Help", value=b"\xff")
    assert unpack_status(status.SerializeToString()) == StatusDetails(14, "no")


def test_trailer_of_another_code_is_of_another_end() -> None:
    trailer = errors.pack_status(grpc.StatusCode.INVALID_ARGUMENT.value[0], "no", "wrong_shape")
    late = failure(grpc.StatusCode.DEADLINE_EXCEEDED, "", (errors.STATUS_TRAILER, trailer))
    assert server_error(late).reason is None


def test_broken_trailer_does_not_hide_the_error() -> None:
    with pytest.raises(ValueError, match=r"google\.rpc\.Status"):
        unpack_status(b"\xff")
    error = server_error(failure(grpc.StatusCode.NOT_FOUND, None, (errors.STATUS_TRAILER, b"\xff")))
    assert isinstance(error, errors.NotFound)
    assert (error.message, error.reason) == ("", None)


def test_errors_survive_pickling() -> None:
    error = errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "full", "queue_full", "r3", 0.5)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.Unavailable
    assert vars(again) == vars(error)


def test_every_exported_exception_is_a_headrace_error() -> None:
    exported = [getattr(errors, name) for name in errors.__all__]
    exceptions = [e for e in exported if isinstance(e, type) and issubclass(e, Exception)]
    assert ServerError in exceptions
    assert all(issubclass(e, errors.HeadraceError) for e in exceptions)

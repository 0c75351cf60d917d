"""Hypothesis strategies for cases: calls, streams and connections, each with something odd."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import strategies as st

from bench.fuzz.cases import Case, Metadata, Socket, Stream, Unary
from bench.fuzz.requests import WORD, body, damaged
from headrace.multiplexing import (
    BUNDLES_METADATA,
    CANCEL_PARAMETER,
    UNORDERED_METADATA,
    bundle_of_requests,
)
from headrace.protocol import explanation_pb2
from headrace.protocol import grpc_service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
INFER = f"{SERVICE}ModelInfer"

PREFIXES = UNARY, STREAM, BUNDLED, OTHER, SOCKET = (
    *("unary-", "stream-", "bundled-", "other-", "socket-"),
)
"""How the ids of requests begin, by the way that they go."""

METHODS = (
    *(
        SERVICE + method.name
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        if method.name not in ("ModelInfer", "ModelStreamInfer")
    ),
    *(
        f"/{service.full_name}/{method.name}"
        for service in explanation_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ),
    *("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    *(f"{SERVICE}NoSuchMethod", "/no.such.Service/Method", "/"),
)

VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
METADATA = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                (
                    *(UNORDERED_METADATA, BUNDLES_METADATA, "triton_grpc_error"),
                    *("authorization", "grpc-accept-encoding", "x-request-id"),
                )
            ),
            st.one_of(st.just("true"), VALUES),
        ),
        st.tuples(st.from_regex(r"x-[a-z0-9-_.]{0,8}[a-z]", fullmatch=True), VALUES),
        st.just(("x-long", "long" * 500)),
    ),
    max_size=3,
).map(tuple)
TIMEOUTS = st.sampled_from((*[None] * 6, 0.0, 0.000_1, 0.001, 0.02, 1.0, 1e9))


@st.composite
def infer_calls(draw: st.DrawFn) -> Unary:
    """A call of ModelInfer."""
    return Unary(
        INFER,
        draw(body(UNARY)),
        draw(METADATA),
        draw(TIMEOUTS),
        draw(st.sampled_from((*[None] * 8, 0.0, 0.001, 0.005))),
    )


@st.composite
def other_calls(draw: st.DrawFn) -> Unary:
    """A call of any other method, whatever its body. Those that never end are given little time."""
    data = draw(
        st.one_of(
            st.binary(max_size=16),
            WORD.map(lambda word: pb.ModelMetadataRequest(name=word).SerializeToString()),
            body(OTHER),
        )
    )
    return Unary(draw(st.sampled_from(METHODS)), data, draw(METADATA), 0.3)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """A stream of requests, cancellations and bundles."""
    bodies: list[bytes] = []
    for _ in range(draw(st.integers(0, 6))):
        how = draw(st.integers(0, 7))
        if how == 0:
            cancelled = pb.ModelInferRequest()
            ids = [pb.ModelInferRequest.FromString(b).id for b in bodies if _readable(b)]
            target = draw(st.sampled_from(ids)) if ids else draw(WORD)
            cancelled.parameters[CANCEL_PARAMETER].string_param = target
            bodies.append(cancelled.SerializeToString())
        elif how == 1:
            bundle = [draw(body(BUNDLED)) for _ in range(draw(st.integers(1, 3)))]
            bodies.append(bundle_of_requests(bundle * draw(st.sampled_from((1, 1, 1, 40)))))
        else:
            bodies.append(draw(body(STREAM)))
    flags: Metadata = tuple(
        (name, "true")
        for name in (UNORDERED_METADATA, BUNDLES_METADATA, "triton_grpc_error")
        if draw(st.booleans()) and (name != "triton_grpc_error" or draw(st.booleans()))
    )
    return Stream(
        tuple(bodies),
        flags,
        draw(st.sampled_from((*[None] * 6, 0.001, 0.02, 1.0))),
        draw(st.sampled_from((*[None] * 6, 0, 1, 3))),
    )


def _readable(data: bytes) -> bool:
    try:
        pb.ModelInferRequest.FromString(data)
    except Exception:
        return False
    return True


# -- HTTP/2 by hand -----------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, END_STREAM, END_HEADERS = 0, 1, 4, 1, 4
"""Of RFC 9113: types of frames, and flags."""


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """One frame; `length` None tells the truth."""
    told = len(payload) if length is None else length
    return struct.pack(">I", told)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(fields: list[tuple[bytes, bytes]]) -> bytes:
    """HPACK (RFC 7541) at its plainest: literals that are never indexed, with lengths below 127."""
    return b"".join(
        b"\x10" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in fields
    )


def call_frames(path: bytes, data: bytes, stream: int) -> list[bytes]:
    """The frames of a proper gRPC call."""
    fields = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", path)),
        *((b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")),
    ]
    message = b"\0" + struct.pack(">I", len(data)) + data
    return [
        frame(HEADERS, END_HEADERS, stream, header_block(fields)),
        frame(DATA, END_STREAM, stream, message),
    ]


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame of any type, flags and stream, and now and then of a wrong length."""
    payload = draw(st.binary(max_size=40))
    length = draw(st.sampled_from((*[None] * 4, 0, len(payload) + 1, 16_384, 2**24 - 1)))
    kind = draw(st.one_of(st.integers(0, 10), st.integers(0, 255)))
    stream = draw(st.one_of(st.integers(0, 9), st.sampled_from((2**31 - 1, 2**31, 2**32 - 1))))
    return frame(kind, draw(st.integers(0, 255)), stream, payload, length)


@st.composite
def sockets(draw: st.DrawFn) -> Socket:
    """Garbage, a spoilt session, or a proper one that is broken off."""
    how = draw(st.integers(0, 5))
    if how == 0:
        data = draw(st.binary(max_size=200))
    elif how == 1:
        data = draw(st.sampled_from(PRELUDES)) + draw(st.binary(max_size=100))
    else:
        pieces = [PREFACE, frame(SETTINGS, 0, 0, b"")]
        for number in range(draw(st.integers(0, 3))):
            path = draw(st.sampled_from((INFER, *METHODS))).encode()
            pieces += call_frames(path, draw(body(SOCKET))[:16_000], 2 * number + 1)
        for _ in range(draw(st.integers(0, 4))):
            pieces.insert(draw(st.integers(1, len(pieces))), draw(frames()))
        if draw(st.booleans()):
            at = draw(st.integers(0, len(pieces) - 1))
            pieces.insert(at, pieces[draw(st.integers(0, len(pieces) - 1))])
        data = b"".join(pieces)
        if draw(st.booleans()):
            data = draw(damaged(data))
    return Socket(data, draw(st.booleans()))


PRELUDES = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the hello of a TLS client
    PREFACE,
    PREFACE[:10],
    b"\x00",
)

KINDS: tuple[Callable[[], st.SearchStrategy[Case]], ...]
KINDS = (*[infer_calls] * 6, streams, streams, other_calls, sockets)


@st.composite
def _any_case(draw: st.DrawFn) -> Case:
    # Not `one_of`, which drops repetitions.
    return draw(KINDS[draw(st.integers(0, len(KINDS) - 1))]())


CASES: st.SearchStrategy[Case] = _any_case()

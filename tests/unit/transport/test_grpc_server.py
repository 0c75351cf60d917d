"""Limits of the server become options of gRPC's."""

from __future__ import annotations

from dataclasses import replace

from headrace_server.transport.grpc_server import DEFAULT_LIMITS, options_of

STREAMS = "grpc.max_concurrent_streams"


def test_calls_of_a_connection_are_limited_unless_many_callers_share_it() -> None:
    assert dict(options_of(DEFAULT_LIMITS))[STREAMS] == 8_192
    assert STREAMS not in dict(options_of(replace(DEFAULT_LIMITS, max_calls=None)))

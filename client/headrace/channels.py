"""The gRPC channel options that both clients use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["ChannelOptions", "channel_options"]

ChannelOptions: TypeAlias = Sequence[tuple[str, str | int]]

_UNLIMITED = -1

_DEFAULTS: ChannelOptions = (
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    # A peer that vanished is noticed while calls wait for it. Servers take pings that come more
    # often than every 5 minutes for abuse, unless told otherwise (gRFC A8).
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A server that restarts is found again within the default retry policy; gRPC's own first
    # pause is 1 s, longer than all of its waits.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt to connect may take at least, despite the name. A busy server that needs
    # longer shall not be given up and asked anew, again and again.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def channel_options(options: ChannelOptions) -> ChannelOptions:
    """The defaults with `options` on top."""
    return list({**dict(_DEFAULTS), **dict(options)}.items())

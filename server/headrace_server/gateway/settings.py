"""What the engine's process tells a gateway, and how."""

from __future__ import annotations

import msgspec

READY = b"\n"
"""What the gateway says once it accepts connections."""


STOP = b"."
"""What the gateway is told when it is to end; without it, the engine's process has."""

PING = b"?"
"""What the gateway is asked now and then, and answers with `READY`."""


class Settings(msgspec.Struct, frozen=True):
    """The first line that a gateway reads. There is no more to read once it is to end.

    Args:
        asks: path of the Unix socket at which the engine's process answers.
        listeners: descriptors of sockets that listen already.
        max_body_bytes: of one call.
        max_connections: at the same time.
        compressed: whether packed bodies are taken.
        tls_cert, tls_key, tls_client_ca: PEM files; empty ones are none.
        tokens: TOML file of those who may call; empty lets everybody.
        grace_s: what calls may take once it is to end.
    """

    asks: str
    listeners: tuple[int, ...]
    max_body_bytes: int
    max_connections: int
    compressed: bool
    tls_cert: str
    tls_key: str
    tls_client_ca: str
    tokens: str
    grace_s: float
    log_format: str
    log_level: str


encode_settings = msgspec.json.Encoder().encode
read_settings = msgspec.json.Decoder(Settings).decode

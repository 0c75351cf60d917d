"""Holds a port that several processes of this server listen on, and nobody else."""

from __future__ import annotations

import socket

from headrace_server.rpc.sockets import bind
from headrace_server.transport.grpc_server import unavailable


class HeldPort:
    """An address that was free, kept by sockets that are bound to it and never listen.

    They are bound alone, and permit sharing only afterwards: that lets processes of the same user
    listen that ask to share, as fronts do, and still fails every other server, another one with
    fronts included, since that binds alone first (Linux).

    Args:
        host: a name or an address, IPv6 without brackets.
        port: 0 takes a free one.

    Raises:
        PortUnavailableError: an address is taken, or none is this machine's.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            self._sockets, self.port = bind(host, port)
        except OSError:
            shown = f"[{host}]" if ":" in host else host
            raise unavailable(f"{shown}:{port}") from None
        for held in self._sockets:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def release(self) -> None:
        """Let others have it."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()

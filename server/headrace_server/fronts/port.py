"""Holds a port that several processes of this server listen on, and nobody else."""

from __future__ import annotations

import errno
import socket
from typing import Any

from headrace_server.transport.grpc_server import unavailable

_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


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
        self.port = port
        self._sockets: list[socket.socket] = []
        shown = f"[{host}]" if ":" in host else host
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            missing: OSError | None = None
            # /etc/hosts may name an address twice, or one of a protocol that is switched off.
            for family, address in dict.fromkeys((family, to) for family, _, _, _, to in found):
                try:
                    self._hold(family, address)
                except OSError as error:
                    if error.errno not in _NOT_OURS:
                        raise
                    missing = error
            if missing is not None and not self._sockets:
                raise missing
        except OSError:
            self.release()
            raise unavailable(f"{shown}:{port}") from None

    def _hold(self, family: int, address: tuple[Any, ...]) -> None:
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Connections of a server that has just ended are in nobody's way.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((address[0], self.port, *address[2:]))
            self.port = held.getsockname()[1]
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except BaseException:
            held.close()
            raise
        self._sockets.append(held)

    def release(self) -> None:
        """Let others have it."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()

"""Holds a port that several processes of this server listen on, and nobody else."""

from __future__ import annotations

import socket

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
        PortUnavailableError: the address is taken or is none of this machine's.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        self._sockets: list[socket.socket] = []
        shown = f"[{host}]" if ":" in host else host
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, address in found:
                held = socket.socket(family, kind, protocol)
                self._sockets.append(held)
                if family == socket.AF_INET6:
                    held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # Connections of a server that has just ended are in nobody's way.
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind((address[0], self.port, *address[2:]))
                self.port = held.getsockname()[1]
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            self.release()
            raise unavailable(f"{shown}:{port}") from None

    def release(self) -> None:
        """Let others have it."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()

"""Sockets bound to every address that a host name stands for, and a place for private ones."""

from __future__ import annotations

import errno
import socket
import tempfile
from pathlib import Path
from typing import Any

LONGEST_DIRECTORY = 80
"""Characters: the path of a Unix socket has at most 107."""

_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bind(host: str, port: int, *, shared: bool = False) -> tuple[list[socket.socket], int]:
    """Sockets that do not listen yet, and their port.

    Args:
        host: a name or an address, IPv6 with or without brackets; "::" stands for IPv4 as well, as
            with gRPC's own servers.
        port: 0 takes a free one.
        shared: other processes of this user may bind to the same port.

    Raises:
        OSError: an address is taken, or none is this machine's.
    """
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # /etc/hosts may name an address twice, or one of a protocol that is switched off.
        for family, address in dict.fromkeys((family, to) for family, _, _, _, to in found):
            try:
                one = _bind(family, address, port, shared)
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                missing = error
            else:
                bound.append(one)
                port = one.getsockname()[1]
        if missing is not None and not bound:
            raise missing
    except OSError:
        for one in bound:
            one.close()
        raise
    return bound, port


def private_directory() -> Path:
    """A new directory for Unix sockets, which nobody but this user may enter."""
    short = len(tempfile.gettempdir()) <= LONGEST_DIRECTORY
    return Path(tempfile.mkdtemp(prefix="headrace-", dir=None if short else "/tmp"))


def _bind(family: int, address: tuple[Any, ...], port: int, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        # Connections of a server that has just ended are in nobody's way.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((address[0], port, *address[2:]))
    except BaseException:
        one.close()
        raise
    return one

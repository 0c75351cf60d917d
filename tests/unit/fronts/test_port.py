"""A port that fronts share and other servers do not get (Linux)."""

from __future__ import annotations

import socket
import sys

import pytest

from headrace_server.fronts.port import HeldPort
from headrace_server.transport.grpc_server import PortUnavailableError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's SO_REUSEPORT")


def listener(port: int, *, sharing: bool) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, sharing)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError:
        listening.close()
        raise
    listening.listen()
    return listening


@pytest.mark.parametrize("with_fronts", [False, True])
def test_fronts_may_listen_and_nobody_else(with_fronts: bool) -> None:
    held = HeldPort("127.0.0.1", 0)
    fronts = [listener(held.port, sharing=True) for _ in range(2)] if with_fronts else []
    with pytest.raises(PortUnavailableError, match=f"127.0.0.1:{held.port}: the port is in use"):
        HeldPort("127.0.0.1", held.port)
    with pytest.raises(OSError, match="in use"):
        listener(held.port, sharing=False)
    for front in fronts:
        front.close()
    held.release()
    HeldPort("127.0.0.1", held.port).release()


def test_who_listens_already_keeps_the_port() -> None:
    for sharing in (False, True):
        other = listener(0, sharing=sharing)
        with pytest.raises(PortUnavailableError):
            HeldPort("127.0.0.1", other.getsockname()[1])
        other.close()


def test_a_name_holds_all_its_addresses_at_one_port() -> None:
    held = HeldPort("localhost", 0)
    assert held.port > 0
    held.release()
    with pytest.raises(PortUnavailableError):
        HeldPort("192.0.2.1", 0)


def test_of_a_name_what_is_here_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*addresses: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    resolve("192.0.2.1", "127.0.0.1", "127.0.0.1")
    held = HeldPort("name", 0)
    other = listener(0, sharing=False)
    with pytest.raises(PortUnavailableError):
        HeldPort("name", other.getsockname()[1])
    with pytest.raises(PortUnavailableError):
        HeldPort("name", held.port)
    other.close()
    held.release()
    resolve("192.0.2.1", "203.0.113.1")
    with pytest.raises(PortUnavailableError):
        HeldPort("name", 0)

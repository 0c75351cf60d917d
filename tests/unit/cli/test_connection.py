"""A command tells whom it could not reach, and what may be missing where somebody hung up."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import SO_LINGER, SOL_SOCKET, create_server, socket
from threading import Thread

import pytest

from headrace.access import Access, Tls
from headrace_server.cli.connection import connected
from headrace_server.cli.errors import CommandError

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""The empty frame with which an HTTP/2 server begins."""

HEADERS = b"\1\4\0\0\0\1"
"""Type, flags and stream of the frame that begins a client's first call."""


def close(connection: socket) -> None:
    """All was read: the other side sees the end of the stream."""
    connection.recv(65536)


def reset(connection: socket) -> None:
    """Without reading, and what is on its way is thrown away: the other side gets an RST."""
    connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))


def reset_in_the_call(connection: socket) -> None:
    connection.sendall(SETTINGS)
    received = b""
    while HEADERS not in received:
        received += connection.recv(65536)
    reset(connection)


@contextmanager
def listening(ends: Callable[[socket], None]) -> Iterator[str]:
    """The address of one who accepts every connection and ends it in this way."""

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if done:
                    return
                ends(connection)

    done: list[bool] = []
    with create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=accept)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            done.append(True)
            with socket() as last:
                last.connect((host, port))
            thread.join()


def told(address: str, tls: Tls | None) -> str:
    with pytest.raises(CommandError) as error, connected(address, 5, Access(tls, "")) as client:
        client.server_live()
    assert f"no server answers at {address}" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ends", [close, reset])
@pytest.mark.parametrize(
    ("tls", "hint"),
    [
        (None, "does it ask for TLS (--tls)?"),
        (Tls(), "does it ask for a certificate of yours (--tls-cert, --tls-key)?"),
    ],
)
def test_who_is_hung_up_on_is_told_what_may_be_missing(
    ends: Callable[[socket], None], tls: Tls | None, hint: str
) -> None:
    with listening(ends) as address:
        assert told(address, tls).endswith(hint)


def test_a_connection_that_was_agreed_on_and_broke_is_no_question_of_tls() -> None:
    with listening(reset_in_the_call) as address:
        assert "TLS" not in told(address, None)


def test_where_nobody_listens_nothing_is_guessed() -> None:
    assert "TLS" not in told("127.0.0.1:1", None)

"""One echo server for all tests of a file, and connections to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from wire.echo_process import EchoProcess
from wire.peer import Peer

Connect = Callable[..., Peer]


@pytest.fixture(scope="module")
def server() -> Iterator[EchoProcess]:
    with EchoProcess() as started:
        yield started


@pytest.fixture
def connect(server: EchoProcess) -> Iterator[Connect]:
    """Make connections; they take what `Peer` takes after the address."""
    with ExitStack() as stack:

        def connected(*arguments: object, **options: object) -> Peer:
            peer = Peer(server.address, *arguments, **options)  # type: ignore[arg-type]
            return stack.enter_context(peer)

        yield connected


@pytest.fixture
def peer(connect: Connect) -> Peer:
    """A connection whose greetings are over."""
    peer = connect()
    peer.greeted()
    return peer


@pytest.fixture
def bystander(connect: Connect) -> Iterator[Peer]:
    """A well-behaved connection beside the one under test, which must be served after it too."""
    beside = connect()
    beside.echo(b"before")
    yield beside
    beside.echo(b"after")

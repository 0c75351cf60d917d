"""Callers that mean harm: each is bounded in memory or sent away, and others are served meanwhile.

Either end is right for the connection that does it: served on, or ended. What is asserted is what
the server holds afterwards, and that connections beside it are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from wire.conftest import Connect
from wire.echo_process import EchoProcess
from wire.echo_server import Limits
from wire.peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    FRAME_BYTES,
    HEADER_TABLE,
    HEADERS,
    HOLD,
    INITIAL_WINDOW,
    LARGE,
    PRIORITY,
    STREAM,
    Closed,
    Peer,
    frame,
    header_frames,
    integer,
    literal,
    literals,
    message,
    ping,
    priority_fields,
    request,
    rst_stream,
    settings,
    string,
    window_update,
)

HELD_BYTES = 48 << 20
"""What no attack of this file may add to the server's memory; each sends, or asks for, more."""

BLOCK = literals(request())
HOLDING = literals(request(HOLD))


@pytest.fixture
def attacker(server: EchoProcess, bystander: Peer, connect: Connect) -> Iterator[Peer]:
    """A connection to do harm with. Its end asserts that the server did not grow."""
    before = server.resident_bytes
    peer = connect()
    peer.greeted()
    peer.socket.settimeout(5.0)
    yield peer
    bystander.echo(b"during")
    assert server.resident_bytes - before < HELD_BYTES


def fire(peer: Peer, burst: Callable[[int], bytes], times: int) -> None:
    """Send that so often, until the server ends the connection or reads no more of it; what it
    says meanwhile is read now and then, as a caller does that wants more to be done for it."""
    with suppress(Closed, TimeoutError):
        for number in range(times):
            peer.send(burst(number))
            if number % 4 == 0:
                drain(peer)
        drain(peer)


def drain(peer: Peer) -> None:
    """Throw away what has come."""
    peer.socket.setblocking(False)
    try:
        with suppress(BlockingIOError):
            while True:
                if not peer.socket.recv(1 << 20):
                    raise Closed
    except ConnectionError:
        raise Closed from None
    finally:
        peer.socket.settimeout(5.0)


def test_rapid_reset(attacker: Peer) -> None:
    """CVE-2023-44487: calls that are begun and reset at once, beyond any limit of streams."""

    def burst(number: int) -> bytes:
        first = number * 200 + 1
        return b"".join(
            header_frames(stream, HOLDING)
            + frame(DATA, 1, stream, message(b"rapid"))
            + rst_stream(stream)
            for stream in range(first, first + 200, 2)
        )

    fire(attacker, burst, 100)


def test_resets_that_the_server_is_brought_to(attacker: Peer) -> None:
    """As rapid reset, but the server resets: each stream has an error (CVE-2025-8671)."""

    def burst(number: int) -> bytes:
        first = number * 200 + 1
        return b"".join(
            header_frames(stream, HOLDING) + window_update(stream, 0)
            for stream in range(first, first + 200, 2)
        )

    fire(attacker, burst, 100)


def test_resets_of_streams_that_never_were(attacker: Peer) -> None:
    fire(attacker, lambda number: b"".join(map(rst_stream, range(1, 2_001, 2))), 50)


def test_a_flood_of_continuations(attacker: Peer) -> None:
    """CVE-2024-27316: a header block that never ends."""
    piece = literal("x-more", "m" * (FRAME_BYTES - 200))
    attacker.send(frame(HEADERS, 0, 1, BLOCK))
    fire(attacker, lambda number: frame(CONTINUATION, 0, 1, piece), 8_000)


def test_a_flood_of_empty_continuations(attacker: Peer) -> None:
    attacker.send(frame(HEADERS, 0, 1, BLOCK))
    fire(attacker, lambda number: frame(CONTINUATION, 0, 1) * 1_000, 100)


@pytest.mark.parametrize(
    "said",
    [
        settings({INITIAL_WINDOW: 70_000}),
        settings({HEADER_TABLE: 0}) + settings({HEADER_TABLE: 4_096}),
        ping(b"pingpong"),
        frame(PRIORITY, 0, 1, priority_fields()),
        frame(0xFA, 0, 0, b"unknown"),
        window_update(0, 1),
    ],
    ids=["settings", "table-size", "ping", "priority", "unknown", "window"],
)
@pytest.mark.parametrize("reads", [True, False])
def test_a_flood_of_small_frames(attacker: Peer, said: bytes, reads: bool) -> None:
    """Those that are answered, too: answers that nobody reads must not pile up."""
    if reads:
        fire(attacker, lambda number: said * 1_000, 100)
        return
    attacker.socket.settimeout(1.0)
    with suppress(Closed, TimeoutError):
        for _ in range(300):
            attacker.send(said * 5_000)


@pytest.mark.parametrize("payload", [b"", b"\x00"], ids=["nothing", "padding"])
def test_a_flood_of_empty_data(attacker: Peer, payload: bytes) -> None:
    stream = attacker.open(STREAM)
    flags = 0x8 if payload else 0
    fire(attacker, lambda number: frame(DATA, flags, stream, payload) * 1_000, 100)


def test_a_flood_of_empty_messages_whose_answers_nobody_reads(attacker: Peer) -> None:
    attacker.obliging = False
    stream = attacker.open(STREAM)
    attacker.socket.settimeout(1.0)
    with suppress(Closed, TimeoutError):
        for _ in range(2_000):
            attacker.upload(stream, message(b"") * 3_000)


def test_a_bomb_of_indexed_fields(attacker: Peer) -> None:
    """One large field in the table, and thousands of bytes that each stand for it."""
    attacker.send(header_frames(1, BLOCK + b"\x40" + string("x-bomb") + string("b" * 3_900)))
    bomb = BLOCK + integer(62, 7, 0x80) * 15_000
    fire(
        attacker,
        lambda number: header_frames(number * 2 + 3, bomb) + rst_stream(number * 2 + 3),
        40,
    )


def test_a_bomb_of_huffman_codes(attacker: Peer) -> None:
    coded = b"\0" * 16_000  # "0" in five bits each
    field = b"\x00" + string("x-bomb") + integer(len(coded), 7, 0x80) + coded
    fire(attacker, lambda number: header_frames(number * 2 + 1, BLOCK + field * 4), 100)


def test_headers_above_the_limit_are_refused(attacker: Peer, server: EchoProcess) -> None:
    stream = attacker.new_stream()
    block = BLOCK + literal("x-large", "v" * (1 << 20))
    with suppress(Closed, TimeoutError):
        attacker.send(header_frames(stream, block, end=True))
        attacker.read_until(lambda: attacker.answers[stream].over)
        assert attacker.answers[stream].refused


def test_many_headers_that_are_no_request(attacker: Peer) -> None:
    fire(attacker, lambda number: header_frames(number * 2 + 1, literal("x", "y")), 5_000)


def test_more_streams_than_allowed(attacker: Peer) -> None:
    fire(attacker, lambda number: header_frames(number * 2 + 1, HOLDING), 10_000)


def test_windows_that_are_shut_for_ever(attacker: Peer) -> None:
    """Answers of 400 MB are asked for: of no more than are under way may the server hold any."""
    attacker.send(settings({INITIAL_WINDOW: 0}))
    ask = message(b"4000000")
    fire(
        attacker,
        lambda number: (
            header_frames(number * 2 + 1, literals(request(LARGE)))
            + frame(DATA, 1, number * 2 + 1, ask)
            + (rst_stream(number * 2 + 1) if number >= 8 else b"")
        ),
        100,
    )


def test_a_storm_of_tiny_window_updates(attacker: Peer) -> None:
    attacker.send(settings({INITIAL_WINDOW: 0}))
    stream = attacker.open(LARGE, b"100000", end=True)
    fire(attacker, lambda number: window_update(stream, 1) * 1_000, 90)


def test_a_request_that_comes_drop_by_drop_blocks_nobody(attacker: Peer, bystander: Peer) -> None:
    call = header_frames(1, BLOCK) + frame(DATA, 1, 1, message(b"slow"))
    for byte in call:
        attacker.send(bytes([byte]))
        bystander.echo()
    assert attacker.answer(1).body == b"slow"


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n"], ids=["silent", "half-a-preface"])
def test_connections_that_say_little_block_nobody(
    server: EchoProcess, bystander: Peer, said: bytes
) -> None:
    before = server.resident_bytes
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Peer(server.address, greet=False)).send(said)
        bystander.echo()
        assert server.resident_bytes - before < HELD_BYTES


def test_connections_above_the_limit_leave_room_once_they_are_gone() -> None:
    with EchoProcess(Limits(connections=50)) as server, Peer(server.address) as first:
        first.echo()
        with ExitStack() as stack:
            for _ in range(500):
                with suppress(Closed, ConnectionError):
                    stack.enter_context(Peer(server.address))
            first.echo()
            assert server.resident_bytes < 512 << 20
        served = False
        while not served:  # until the server has seen that they are gone
            with suppress(Closed, ConnectionError), Peer(server.address) as late:
                late.echo()
                served = True


def test_calls_of_a_connection_that_is_gone_are_all_cancelled(
    connect: Connect, bystander: Peer
) -> None:
    peer = connect()
    names = [b"gone %d" % number for number in range(20)]
    for name in names:
        peer.open(HOLD, name, end=True)
    for name in names:
        assert bystander.call("/test.Echo/Begun", name).body == name
    peer.reset()
    for name in names:
        assert bystander.call("/test.Echo/Cancelled", name).body == name


def test_an_unfinished_block_at_the_end_of_a_connection_is_forgotten(
    server: EchoProcess, bystander: Peer
) -> None:
    for cut in range(1, 60):
        with Peer(server.address) as peer:
            peer.send(frame(HEADERS, END_HEADERS, 1, BLOCK)[:cut])
    bystander.echo()

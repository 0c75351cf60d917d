"""Rules about streams: numbers, states, cancellation and the end of a connection (RFC 9113, 5)."""

from __future__ import annotations

from contextlib import suppress

import pytest

from wire.conftest import Connect
from wire.echo_process import EchoProcess
from wire.echo_server import Limits
from wire.peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HOLD,
    LAST_STREAM,
    MAX_STREAMS,
    NO_ERROR,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM,
    STREAM_CLOSED,
    UNARY,
    Closed,
    Peer,
    frame,
    header_frames,
    literals,
    message,
    priority_fields,
    request,
    rst_stream,
    settings,
    window_update,
)

BLOCK = literals(request())
STREAM_BLOCK = literals(request(STREAM))


def whole(stream: int, body: bytes) -> bytes:
    """A unary call."""
    return header_frames(stream, BLOCK) + frame(DATA, END_STREAM, stream, message(body))


# -- 5.1.1, numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [2, 4, 1000])
def test_5_1_1_an_even_number_is_a_connection_error(
    peer: Peer, bystander: Peer, stream: int
) -> None:
    peer.send(whole(stream, b"even"))
    peer.connection_error(PROTOCOL_ERROR)


def test_5_1_1_a_number_below_one_used_is_a_connection_error(peer: Peer) -> None:
    peer.send(header_frames(5, STREAM_BLOCK), whole(3, b"late"))
    peer.connection_error(PROTOCOL_ERROR, STREAM_CLOSED)


def test_5_1_1_numbers_may_be_left_out(peer: Peer) -> None:
    for stream in (5, 7, 1_001, 2**31 - 1):
        peer.send(whole(stream, b"leap"))
        assert peer.answer(stream).body == b"leap"


def test_5_1_1_a_new_stream_closes_idle_ones_below_it(peer: Peer) -> None:
    peer.send(whole(9, b"leap"))
    assert peer.answer(9).body == b"leap"
    peer.send(frame(DATA, 0, 3, message(b"into the void")))
    peer.stream_error(3, STREAM_CLOSED, PROTOCOL_ERROR)


def test_5_1_1_a_number_cannot_be_used_twice(peer: Peer) -> None:
    peer.send(whole(1, b"once"))
    assert peer.answer(1).body == b"once"
    peer.send(whole(1, b"twice"))
    peer.connection_error(STREAM_CLOSED, PROTOCOL_ERROR)
    assert peer.answers[1].body == b"once"


# -- 5.1, states ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [frame(DATA, 0, 1, b"data"), rst_stream(1), window_update(1, 1)],
    ids=["data", "rst", "window"],
)
def test_5_1_idle_streams_take_headers_and_priority_alone(
    peer: Peer, bystander: Peer, said: bytes
) -> None:
    peer.send(said)
    peer.connection_error(PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "said",
    [frame(DATA, 0, 1, message(b"more")), header_frames(1, literals([("x", "y")]), end=True)],
    ids=["data", "headers"],
)
def test_5_1_half_closed_streams_take_no_more(peer: Peer, bystander: Peer, said: bytes) -> None:
    stream = peer.open(HOLD, b"half closed", end=True)
    assert stream == 1
    peer.send(said)
    peer.stream_error(stream, STREAM_CLOSED)


def test_5_1_half_closed_streams_take_what_is_not_content(peer: Peer) -> None:
    stream = peer.begin(UNARY)
    peer.data(stream, message(b"done"), end=True)
    peer.send(window_update(stream, 1), frame(PRIORITY, 0, stream, priority_fields(99)))
    assert peer.answer(stream).body == b"done"


@pytest.mark.parametrize("said", [window_update(1, 1), rst_stream(1)], ids=["window", "rst"])
def test_5_1_closed_streams_take_what_was_under_way(peer: Peer, said: bytes) -> None:
    peer.echo()
    peer.send(said, said, frame(PRIORITY, 0, 1, priority_fields(3)))
    peer.echo()


@pytest.mark.parametrize(
    "said",
    [frame(DATA, 0, 1, message(b"late")), header_frames(1, literals([("x", "y")]), end=True)],
    ids=["data", "headers"],
)
def test_5_1_content_on_a_stream_that_both_have_ended_is_an_error(peer: Peer, said: bytes) -> None:
    peer.echo()
    peer.answers.clear()
    peer.send(said)
    peer.stream_error(1, STREAM_CLOSED)


@pytest.mark.parametrize("how", ["data", "trailers", "window", "rst"])
def test_5_1_what_follows_the_servers_reset_is_ignored(peer: Peer, how: str) -> None:
    """The server ends a call that is still open on the client's side with an answer and, maybe, a
    reset: the client may have sent more before it saw that."""
    stream = peer.begin([*request("/no.such/Method")])
    assert peer.answer(stream).status == 12
    late = {
        "data": frame(DATA, 0, stream, message(b"late")),
        "trailers": header_frames(stream, literals([("x-late", "1")]), end=True),
        "window": window_update(stream, 10),
        "rst": rst_stream(stream),
    }
    peer.send(late[how])
    peer.echo()


@pytest.mark.parametrize("end", [True, False])
def test_5_1_headers_after_data_must_end_the_stream(peer: Peer, end: bool) -> None:
    stream = peer.open(STREAM, b"one")
    peer.send(header_frames(stream, literals([("x-trailer", "1")]), end=end))
    if end:
        answer = peer.answer(stream)
        assert (answer.status, answer.messages) == (0, [b"one"])
    else:
        peer.stream_error(stream, PROTOCOL_ERROR)


def test_8_1_trailers_carry_no_pseudo_fields(peer: Peer) -> None:
    stream = peer.open(STREAM, b"one")
    peer.send(header_frames(stream, literals([(":path", STREAM)]), end=True))
    peer.stream_error(stream, PROTOCOL_ERROR)


@pytest.mark.parametrize("how", ["headers", "priority"])
def test_5_3_1_a_stream_cannot_depend_on_itself_or_it_has_no_effect(peer: Peer, how: str) -> None:
    """RFC 7540 made it an error of the stream; RFC 9113 leaves the fields without meaning."""
    fields = priority_fields(1)
    if how == "headers":
        peer.send(frame(HEADERS, END_HEADERS | PRIORITISED, 1, fields + BLOCK))
    else:
        peer.send(header_frames(1, BLOCK), frame(PRIORITY, 0, 1, fields))
    peer.send(frame(DATA, END_STREAM, 1, message(b"itself")))
    with suppress(Closed):
        peer.read_until(lambda: peer.answers[1].over or peer.goaway is not None)
    if not peer.answers[1].ended:
        peer.stream_error(1, PROTOCOL_ERROR)
    else:
        assert peer.answers[1].body == b"itself"


# -- 5.1.2, concurrency --------------------------------------------------------------------------


def test_5_1_2_as_many_streams_as_promised_are_served_at_once(peer: Peer) -> None:
    limit = peer.server[MAX_STREAMS]
    streams = [peer.open(STREAM, b"%d" % number) for number in range(limit)]
    for number, stream in enumerate(streams):
        peer.read_flow(stream, len(message(b"%d" % number)))
        assert peer.answers[stream].messages == [b"%d" % number]
    for stream in streams:
        peer.data(stream, b"", end=True)
    assert all(peer.answer(stream).status == 0 for stream in streams)


def test_5_1_2_a_stream_above_the_limit_is_refused_alone(peer: Peer) -> None:
    limit = peer.server[MAX_STREAMS]
    streams = [peer.open(STREAM) for _ in range(limit)]
    above = peer.open(STREAM)
    peer.stream_error(above, REFUSED_STREAM, PROTOCOL_ERROR)
    assert peer.goaway is None
    for stream in streams:
        peer.data(stream, message(b"still served"), end=True)
    assert all(peer.answer(stream).messages == [b"still served"] for stream in streams)
    peer.echo()


@pytest.mark.parametrize("how", ["ended", "reset"])
def test_5_1_2_closed_streams_do_not_count(peer: Peer, how: str) -> None:
    for _ in range(2):
        streams = [peer.open(STREAM) for _ in range(peer.server[MAX_STREAMS])]
        for stream in streams:
            if how == "ended":
                peer.data(stream, b"", end=True)
                assert peer.answer(stream).status == 0
            else:
                peer.send(rst_stream(stream))
        # A server may refuse more while it still clears up; the caller may try again (8.7).
        while (answer := peer.call(UNARY, b"next")).reset == REFUSED_STREAM:
            pass
        assert answer.body == b"next"


def test_5_1_2_the_block_of_a_refused_stream_still_fills_the_table(peer: Peer) -> None:
    limit = peer.server[MAX_STREAMS]
    streams = [peer.open(STREAM) for _ in range(limit)]
    # Literals with incremental indexing: the server's table must take them though it refuses.
    learnt = b"".join(b"\x40" + field[1:] for field in map(_literal, request("/test.Echo/Unary")))
    refused = peer.new_stream()
    peer.send(header_frames(refused, learnt))
    peer.stream_error(refused, REFUSED_STREAM, PROTOCOL_ERROR)
    for stream in streams:
        peer.data(stream, b"", end=True)
        peer.answer(stream)
    indexed = bytes(0x80 | index for index in range(62, 68))
    stream = peer.new_stream()
    peer.send(header_frames(stream, b"".join(bytes([b]) for b in reversed(indexed))))
    peer.data(stream, message(b"from the table"), end=True)
    assert peer.answer(stream).body == b"from the table"


def _literal(item: tuple[str | bytes, str | bytes]) -> bytes:
    return literals([item])


# -- 6.4, RST_STREAM -----------------------------------------------------------------------------


def held(peer: Peer, beside: Peer, name: bytes) -> int:
    """A call that has begun to wait; its stream."""
    stream = peer.open(HOLD, name, end=True)
    assert beside.call("/test.Echo/Begun", name).body == name
    return stream


def test_6_4_a_reset_cancels_the_call(peer: Peer, bystander: Peer) -> None:
    stream = held(peer, bystander, b"reset")
    peer.send(rst_stream(stream))
    assert bystander.call("/test.Echo/Cancelled", b"reset").body == b"reset"
    peer.echo()
    assert not peer.answers[stream].blocks, "an answer after the reset"


def test_6_4_a_reset_of_one_stream_leaves_the_others(peer: Peer, bystander: Peer) -> None:
    other = peer.open(STREAM, b"one")
    peer.send(rst_stream(held(peer, bystander, b"the other")))
    peer.data(other, message(b"two"), end=True)
    assert peer.answer(other).messages == [b"one", b"two"]


def test_6_4_an_unknown_code_is_a_reset_all_the_same(peer: Peer, bystander: Peer) -> None:
    peer.send(rst_stream(held(peer, bystander, b"unknown code"), 0xDEADBEEF))
    assert bystander.call("/test.Echo/Cancelled", b"unknown code").body == b"unknown code"
    peer.echo()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_lost_connection_cancels_its_calls(connect: Connect, bystander: Peer, how: str) -> None:
    peer, name = connect(), b"lost by " + how.encode()
    held(peer, bystander, name)
    if how == "rst":
        peer.reset()
    else:
        peer.socket.close()
    assert bystander.call("/test.Echo/Cancelled", name).body == name


# -- 6.8, GOAWAY ---------------------------------------------------------------------------------


def test_6_8_a_clients_goaway_lets_its_calls_finish(peer: Peer) -> None:
    stream = peer.open(STREAM, b"one")
    peer.send(frame(GOAWAY, 0, 0, bytes(8) + b"debug data"))
    peer.data(stream, message(b"two"), end=True)
    assert peer.answer(stream).messages == [b"one", b"two"]


def test_6_8_a_graceful_stop_lets_calls_finish_and_then_closes() -> None:
    with EchoProcess() as server, Peer(server.address) as peer:
        peer.greeted()
        stream = peer.open(STREAM, b"one")
        peer.read_until(lambda: peer.answers[stream].data)
        server.terminate()
        peer.read_until(lambda: peer.goaway is not None)
        assert peer.goaway == NO_ERROR
        peer.data(stream, message(b"two"), end=True)
        answer = peer.answer(stream)
        assert (answer.status, answer.messages) == (0, [b"one", b"two"])
        with pytest.raises(Closed):
            peer.read_until(lambda: False)
        assert peer.last_stream is not None
        assert stream <= peer.last_stream < LAST_STREAM, "the last GOAWAY tells the last stream"


def test_6_8_a_graceful_stop_refuses_new_calls_and_connections() -> None:
    with EchoProcess() as server, Peer(server.address) as peer:
        peer.greeted()
        stream = peer.open(STREAM, b"one")
        peer.read_until(lambda: peer.answers[stream].data)
        server.terminate()
        peer.read_until(lambda: stream <= (peer.last_stream or 0) < LAST_STREAM)
        late = peer.open(UNARY, b"late", end=True)
        peer.data(stream, message(b"two"), end=True)
        with suppress(Closed):
            peer.read_until(lambda: peer.answers[stream].over and peer.answers[late].over)
        assert peer.answers[stream].messages == [b"one", b"two"]
        # Above the last stream of GOAWAY, so ignored or refused: the caller may try it elsewhere.
        assert not peer.answers[late].blocks
        assert peer.answers[late].reset in (None, REFUSED_STREAM)
        with pytest.raises((Closed, OSError)), Peer(server.address) as another:
            another.echo()


def test_6_8_calls_beyond_the_grace_period_are_ended() -> None:
    with EchoProcess(Limits(grace_s=0.2)) as server, Peer(server.address) as peer:
        stream = peer.open(STREAM, b"one")
        peer.read_until(lambda: peer.answers[stream].data)
        server.terminate()
        with pytest.raises(Closed):
            peer.read_until(lambda: False)
        answer = peer.answers[stream]
        assert not answer.ended or answer.status != 0


def test_6_8_an_idle_connection_is_closed_at_once_by_a_graceful_stop() -> None:
    with EchoProcess(Limits(grace_s=1_000.0)) as server, Peer(server.address) as peer:
        peer.echo()
        server.terminate()
        peer.connection_error(NO_ERROR)


def test_3_4_a_server_stops_with_a_connection_that_says_nothing() -> None:
    with EchoProcess() as server, Peer(server.address, greet=False) as silent:
        assert silent.read().kind == SETTINGS
        server.terminate()
        with pytest.raises(Closed):
            silent.read_until(lambda: False)


def test_settings_limit_of_the_client_does_not_bind_its_own_calls(connect: Connect) -> None:
    """MAX_CONCURRENT_STREAMS of a client is about what the server opens: nothing (6.5.2)."""
    peer = connect({MAX_STREAMS: 0})
    peer.echo()
    peer.send(settings({MAX_STREAMS: 0}))
    peer.echo()


def test_5_1_a_reset_by_the_server_names_an_open_stream(peer: Peer) -> None:
    """RFC 9113, 6.4: no RST_STREAM for an idle stream, and none in answer to one (5.4.2)."""
    peer.echo()
    peer.send(rst_stream(1), rst_stream(1))
    peer.echo()
    assert not [taken for taken in peer.frames if taken.kind == RST_STREAM and taken.stream != 1]

"""Rules about frames: preface, settings, sizes, padding, CONTINUATION (RFC 9113, 3 to 6)."""

from __future__ import annotations

import pytest

from wire.conftest import Connect
from wire.echo_process import EchoProcess
from wire.peer import (
    ACK,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_BYTES,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_WINDOW,
    MAX_FRAME,
    MAX_STREAMS,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    STREAM,
    UNARY,
    WINDOW_UPDATE,
    Closed,
    Peer,
    frame,
    header_frames,
    literals,
    message,
    padded,
    ping,
    priority_fields,
    request,
    rst_stream,
    settings,
    window_update,
)

BLOCK = literals(request())


# -- 3.4, preface --------------------------------------------------------------------------------


def test_3_4_first_frame_of_the_server_is_settings(connect: Connect) -> None:
    peer = connect()
    first = peer.read()
    assert (first.kind, first.flags & ACK, first.stream) == (SETTINGS, 0, 0)


def test_3_4_requests_may_follow_the_preface_at_once(connect: Connect) -> None:
    peer = connect(greet=False)
    call = header_frames(1, BLOCK) + frame(DATA, END_STREAM, 1, message(b"early"))
    peer.send(PREFACE, settings({}), call)
    assert peer.answer(1).body == b"early"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + settings({}),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        bytes(64),
    ],
    ids=["http-1", "almost", "tls", "zeros"],
)
def test_3_4_another_preface_is_a_connection_error(
    connect: Connect, bystander: Peer, said: bytes
) -> None:
    peer = connect(greet=False)
    peer.send(said)
    closed_or_error(peer)


def closed_or_error(peer: Peer) -> None:
    """What is no HTTP/2 may be answered in HTTP/1 or in any other way; then the connection ends."""
    assert peer.closed_by_peer(20.0)


def test_3_4_first_frame_of_the_client_must_be_settings(connect: Connect) -> None:
    peer = connect(greet=False)
    peer.send(PREFACE, ping(b"12345678"), ping(b"12345678"))
    peer.connection_error(PROTOCOL_ERROR)


# -- 4.1, format ---------------------------------------------------------------------------------


def test_4_1_frames_may_be_split_anywhere_over_writes(connect: Connect) -> None:
    call = b"".join(
        (
            PREFACE,
            settings({INITIAL_WINDOW: 70_000}),
            header_frames(1, BLOCK, sizes=[10, 20]),
            ping(b"pingpong"),
            frame(DATA, 0, 1, message(b"split")[:3]),
            frame(DATA, END_STREAM, 1, message(b"split")[3:]),
        )
    )
    for at in range(1, len(call)):
        peer = connect(greet=False)
        peer.send(call[:at])
        peer.send(call[at:])
        assert peer.answer(1).body == b"split", at
        peer.socket.close()


def test_4_1_frames_may_come_byte_by_byte(connect: Connect) -> None:
    peer = connect(greet=False)
    call = header_frames(1, BLOCK) + frame(DATA, END_STREAM, 1, message(b"drop by drop"))
    for byte in PREFACE + settings({}) + call:
        peer.send(bytes([byte]))
    assert peer.answer(1).body == b"drop by drop"


def test_4_1_many_frames_may_come_in_one_write(peer: Peer) -> None:
    streams = range(1, 161, 2)
    peer.send(
        *(
            header_frames(stream, BLOCK)
            + frame(DATA, END_STREAM, stream, message(b"%d" % stream) * 1)
            for stream in streams
        )
    )
    assert {s: peer.answer(s).body for s in streams} == {s: b"%d" % s for s in streams}


@pytest.mark.parametrize("kind", [0x0B, 0x16, 0xFA, 0xFF])
@pytest.mark.parametrize("stream", [0, 1, 7])
def test_4_1_unknown_types_of_frames_are_ignored(peer: Peer, kind: int, stream: int) -> None:
    call = peer.open(STREAM, b"one")
    assert call == 1
    peer.send(frame(kind, 0xFF, stream, b"whatever"), frame(kind, 0, stream))
    peer.data(call, message(b"two"), end=True)
    assert peer.answer(call).messages == [b"one", b"two"]


def test_4_1_undefined_flags_and_the_reserved_bit_are_ignored(peer: Peer) -> None:
    reserved = 1 << 31
    peer.send(
        frame(HEADERS, END_HEADERS | 0xD2 & ~PADDED & ~PRIORITISED, 1 | reserved, BLOCK),
        frame(DATA, END_STREAM | 0xF6 & ~PADDED, 1 | reserved, message(b"flags")),
        frame(PING, 0xFE, reserved, b"reserved"),
    )
    assert peer.answer(1).body == b"flags"
    peer.read_until(lambda: b"reserved" in peer.pongs)


# -- 4.2, sizes ----------------------------------------------------------------------------------


def test_4_2_a_frame_of_the_largest_size_is_taken(peer: Peer) -> None:
    stream = peer.begin(STREAM)
    body = bytes(range(256)) * 64
    whole = message(body[: FRAME_BYTES - 5])
    peer.data(stream, whole, end=True)
    assert peer.answer(stream).messages == [body[: FRAME_BYTES - 5]]


@pytest.mark.parametrize("kind", [DATA, HEADERS, CONTINUATION, 0xFA])
def test_4_2_a_frame_above_the_limit_is_an_error(
    peer: Peer, bystander: Peer, kind: int, server: EchoProcess
) -> None:
    size = peer.server.get(MAX_FRAME, FRAME_BYTES) + 1
    stream = peer.begin(STREAM)
    if kind == CONTINUATION:
        peer.send(frame(HEADERS, 0, 3, BLOCK))
    try:
        peer.send(frame(kind, 0, stream if kind != HEADERS else 3, bytes(size)))
    except Closed:
        return
    # Of one stream alone if it is DATA of one; anything that changes the connection is its error.
    peer.stream_error(stream, FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    "said",
    [
        ping(b"1234567"),
        ping(b"123456789"),
        ping(b""),
        frame(RST_STREAM, 0, 1, b"\0\0\0"),
        frame(RST_STREAM, 0, 1, b"\0\0\0\0\0"),
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"),
        frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0\1"),
        frame(SETTINGS, 0, 0, b"\0\3\0\0\0"),
        frame(SETTINGS, ACK, 0, b"\0\3\0\0\0\1"),
    ],
    ids=[
        *("ping-7", "ping-9", "ping-0", "rst-3", "rst-5", "window-3", "window-5"),
        *("settings-5", "settings-ack-6"),
    ],
)
def test_6_a_frame_of_another_size_than_its_type_has_is_a_connection_error(
    peer: Peer, bystander: Peer, said: bytes
) -> None:
    peer.open(STREAM)
    peer.send(said)
    peer.connection_error(FRAME_SIZE_ERROR)


def test_6_8_a_goaway_too_short_for_its_fields_is_a_connection_error(peer: Peer) -> None:
    peer.send(frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0"))
    peer.connection_error(FRAME_SIZE_ERROR)


def test_6_3_a_priority_frame_of_another_size_is_a_stream_error(peer: Peer) -> None:
    stream = peer.open(STREAM)
    peer.send(frame(PRIORITY, 0, stream, b"\0\0\0\0"))
    peer.stream_error(stream, FRAME_SIZE_ERROR)


# -- 6.1 and 6.2, padding and priority -----------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_6_1_padding_of_data_is_dropped(peer: Peer, padding: int) -> None:
    stream = peer.begin(UNARY)
    sent = message(b"padded")
    peer.send(frame(DATA, PADDED, stream, padded(sent[:7], padding)))
    peer.send(frame(DATA, PADDED | END_STREAM, stream, padded(sent[7:], padding)))
    assert peer.answer(stream).body == b"padded"


@pytest.mark.parametrize("flags", [PADDED, PADDED | PRIORITISED, PRIORITISED])
def test_6_2_padding_and_priority_of_headers_are_dropped(peer: Peer, flags: int) -> None:
    priority = priority_fields() if flags & PRIORITISED else b""
    payload = padded(BLOCK, 9, priority) if flags & PADDED else priority + BLOCK
    peer.send(
        frame(HEADERS, flags | END_HEADERS, 1, payload),
        frame(DATA, END_STREAM, 1, message(b"padded headers")),
    )
    assert peer.answer(1).body == b"padded headers"


def test_6_2_padding_of_headers_ends_before_continuation(peer: Peer) -> None:
    peer.send(
        frame(HEADERS, PADDED, 1, padded(BLOCK[:20], 100)),
        frame(CONTINUATION, END_HEADERS, 1, BLOCK[20:]),
        frame(DATA, END_STREAM, 1, message(b"padded headers")),
    )
    assert peer.answer(1).body == b"padded headers"


@pytest.mark.parametrize(
    "said",
    [
        frame(DATA, PADDED, 1, b""),
        frame(DATA, PADDED, 1, b"\x05abcd"),
        frame(DATA, PADDED, 1, b"\x01"),
    ],
    ids=["no-length", "more-than-there-is", "all-and-the-length"],
)
def test_6_1_more_padding_than_payload_is_a_connection_error(peer: Peer, said: bytes) -> None:
    peer.open(STREAM)
    peer.send(said)
    peer.connection_error(PROTOCOL_ERROR, FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("flags", "payload"),
    [
        (PADDED, b""),
        (PADDED, b"\x09" + BLOCK[:8]),
        (PADDED | PRIORITISED, b"\x00\0\0\0"),
        (PADDED | PRIORITISED, b"\x02\0\0\0\0\0\0"),
        (PRIORITISED, b"\0\0\0\0"),
    ],
)
def test_6_2_padding_or_priority_beyond_the_frame_is_a_connection_error(
    peer: Peer, flags: int, payload: bytes
) -> None:
    peer.send(frame(HEADERS, flags | END_HEADERS, 1, payload))
    peer.connection_error(PROTOCOL_ERROR, FRAME_SIZE_ERROR)


@pytest.mark.parametrize("stream", [1, 3, 5, 100])
def test_5_3_2_priority_is_taken_in_any_state_and_without_effect(peer: Peer, stream: int) -> None:
    peer.echo()
    call = peer.open(STREAM, b"one")
    assert call == 3
    peer.send(frame(PRIORITY, 0, stream, priority_fields(1 if stream != 1 else 3)))
    peer.data(call, message(b"two"), end=True)
    assert peer.answer(call).messages == [b"one", b"two"]
    peer.echo()


# -- 6.10, CONTINUATION --------------------------------------------------------------------------


def test_6_10_a_block_may_be_cut_anywhere(peer: Peer) -> None:
    for at in range(len(BLOCK) + 1):
        stream = peer.new_stream()
        peer.send(
            header_frames(stream, BLOCK, sizes=[at]),
            frame(DATA, END_STREAM, stream, message(b"cut")),
        )
        assert peer.answer(stream).body == b"cut", at


def test_6_10_end_of_stream_is_told_by_headers_even_when_continued(peer: Peer) -> None:
    peer.send(header_frames(1, literals(request(STREAM)), end=True, sizes=[9, 0, 9]))
    assert peer.answer(1).status == 0


@pytest.mark.parametrize(
    "said",
    [
        frame(DATA, 0, 1, message(b"")),
        header_frames(3, BLOCK),
        frame(CONTINUATION, END_HEADERS, 3, BLOCK[9:]),
        ping(b"12345678"),
        SETTINGS_ACK,
        frame(0xFA, 0, 1, b"unknown"),
        window_update(0, 1),
        rst_stream(1),
    ],
    ids=["data", "headers", "another-stream", "ping", "settings", "unknown", "window", "rst"],
)
def test_6_10_nothing_may_interrupt_a_block(peer: Peer, bystander: Peer, said: bytes) -> None:
    peer.send(frame(HEADERS, 0, 1, BLOCK[:9]), said)
    peer.connection_error(PROTOCOL_ERROR)


@pytest.mark.parametrize("before", ["nothing", "whole", "data"])
def test_6_10_continuation_without_a_block_is_a_connection_error(peer: Peer, before: str) -> None:
    if before != "nothing":
        stream = peer.open(STREAM, *([b"data"] if before == "data" else []))
        assert stream == 1
    peer.send(frame(CONTINUATION, END_HEADERS, 1, b""))
    peer.connection_error(PROTOCOL_ERROR)


# -- 6.5, SETTINGS -------------------------------------------------------------------------------


def test_6_5_each_settings_frame_is_acknowledged_in_its_turn(peer: Peer) -> None:
    acked = peer.settings_acked
    peer.send(settings({}), settings({INITIAL_WINDOW: 70_000}), settings({MAX_STREAMS: 0}))
    peer.read_until(lambda: peer.settings_acked == acked + 3)
    peer.echo()


def test_6_5_2_unknown_settings_are_ignored(connect: Connect) -> None:
    peer = connect({0x0: 1, 0x7: 1, 0xFE01: 2**32 - 1, 0xFFFF: 0})
    peer.greeted()
    peer.echo()


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({ENABLE_PUSH: 2}, PROTOCOL_ERROR),
        ({INITIAL_WINDOW: LARGEST_WINDOW + 1}, FLOW_CONTROL_ERROR),
        ({MAX_FRAME: FRAME_BYTES - 1}, PROTOCOL_ERROR),
        ({MAX_FRAME: 1 << 24}, PROTOCOL_ERROR),
    ],
    ids=["push", "window", "small-frame", "large-frame"],
)
def test_6_5_2_a_value_out_of_range_is_a_connection_error(
    peer: Peer, values: dict[int, int], code: int
) -> None:
    peer.send(settings(values))
    peer.connection_error(code)


@pytest.mark.parametrize(
    "values",
    [
        {ENABLE_PUSH: 0},
        {ENABLE_PUSH: 1},
        {INITIAL_WINDOW: LARGEST_WINDOW},
        {MAX_FRAME: FRAME_BYTES},
        {MAX_FRAME: (1 << 24) - 1},
        {HEADER_TABLE: 0},
        {HEADER_TABLE: 2**32 - 1},
    ],
)
def test_6_5_2_the_ends_of_the_ranges_are_taken(peer: Peer, values: dict[int, int]) -> None:
    peer.send(settings(values))
    peer.echo()
    peer.echo(b"again, with what the first one left in the tables")


def test_6_5_3_the_last_value_of_a_setting_that_is_repeated_counts(peer: Peer) -> None:
    twice = settings({INITIAL_WINDOW: 0})[9:] + settings({INITIAL_WINDOW: 100})[9:]
    peer.obliging = False
    peer.send(frame(SETTINGS, 0, 0, twice))
    stream = peer.open("/test.Echo/Large", b"1000", end=True)
    peer.read_until(lambda: peer.answers[stream].flow == 100)


@pytest.mark.parametrize("values", [b"", b"\0\3\0\0\0\1"])
def test_6_5_settings_on_a_stream_are_a_connection_error(peer: Peer, values: bytes) -> None:
    peer.open(STREAM)
    peer.send(frame(SETTINGS, 0, 1, values))
    peer.connection_error(PROTOCOL_ERROR)


# -- 6.7, PING -----------------------------------------------------------------------------------


def test_6_7_a_ping_is_answered_with_its_payload(peer: Peer) -> None:
    peer.send(ping(b"\0\1\2\3\xfc\xfd\xfe\xff"), ping(b"second  "))
    peer.read_until(lambda: len(peer.pongs) == 2)
    assert peer.pongs == [b"\0\1\2\3\xfc\xfd\xfe\xff", b"second  "]


def test_6_7_an_answer_to_a_ping_is_not_answered(peer: Peer) -> None:
    peer.send(ping(b"answer  ", ACK), ping(b"question"))
    peer.read_until(lambda: peer.pongs)
    assert peer.pongs == [b"question"]
    peer.echo()


def test_6_7_a_ping_on_a_stream_is_a_connection_error(peer: Peer) -> None:
    peer.open(STREAM)
    peer.send(frame(PING, 0, 1, b"12345678"))
    peer.connection_error(PROTOCOL_ERROR)


# -- frames that need a stream, or none, or a server's role --------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        frame(DATA, 0, 0, b"data"),
        frame(HEADERS, END_HEADERS, 0, BLOCK),
        frame(PRIORITY, 0, 0, priority_fields()),
        frame(RST_STREAM, 0, 0, b"\0\0\0\x08"),
        frame(CONTINUATION, END_HEADERS, 0, BLOCK),
        frame(GOAWAY, 0, 1, bytes(8)),
    ],
    ids=["data", "headers", "priority", "rst", "continuation", "goaway"],
)
def test_6_a_frame_on_the_wrong_kind_of_stream_is_a_connection_error(
    peer: Peer, bystander: Peer, said: bytes
) -> None:
    peer.open(STREAM)
    peer.send(said)
    peer.connection_error(PROTOCOL_ERROR)


def test_8_4_a_push_promise_of_a_client_is_a_connection_error(peer: Peer) -> None:
    stream = peer.open(STREAM)
    peer.send(frame(PUSH_PROMISE, END_HEADERS, stream, b"\0\0\0\2" + BLOCK))
    peer.connection_error(PROTOCOL_ERROR)

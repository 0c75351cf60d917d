"""Flow control in both directions, to the byte (RFC 9113, 5.2, 6.5.2 and 6.9)."""

from __future__ import annotations

import time

import pytest

from wire.conftest import Connect
from wire.echo_process import EchoProcess
from wire.echo_server import Limits, pattern
from wire.peer import (
    DATA,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_BYTES,
    INITIAL_WINDOW,
    LARGE,
    LARGEST_WINDOW,
    MAX_FRAME,
    PADDED,
    PROTOCOL_ERROR,
    STREAM,
    UNARY,
    WINDOW,
    Closed,
    Peer,
    frame,
    message,
    padded,
    ping,
    rst_stream,
    settings,
    window_update,
)


def asked(peer: Peer, size: int) -> int:
    """A call that will be answered with so many bytes, prefix included."""
    return peer.open(LARGE, b"%d" % (size - 5), end=True)


def settled(peer: Peer) -> None:
    """Read until the server has taken, and answered, what was sent so far: PINGs are answered in
    their turn, and DATA that windows allowed before would have come in the end too."""
    for opaque in (b"settle 1", b"settle 2"):
        peer.pongs.clear()
        peer.send(ping(opaque))
        peer.read_until(lambda: peer.pongs)


def came(peer: Peer, stream: int, flow: int) -> None:
    """Assert that just so many bytes of DATA come."""
    peer.read_until(lambda: peer.answers[stream].flow >= flow)
    settled(peer)
    assert peer.answers[stream].flow == flow


# -- what the server sends -----------------------------------------------------------------------


@pytest.fixture
def stingy(connect: Connect) -> Peer:
    """A connection that gives no windows back."""
    peer = connect({INITIAL_WINDOW: 1_000}, obliging=False)
    peer.greeted()
    return peer


def test_6_9_1_the_window_of_a_stream_is_used_up_and_not_exceeded(stingy: Peer) -> None:
    stream = asked(stingy, 5_000)
    came(stingy, stream, 1_000)
    for total, more in ((1_001, 1), (1_003, 2), (4_999, 3_996)):
        stingy.send(window_update(stream, more))
        came(stingy, stream, total)
        assert not stingy.answers[stream].ended
    stingy.send(window_update(stream, 1))
    assert stingy.answer(stream).body == pattern(4_995)


def test_6_9_1_the_window_of_the_connection_is_used_up_and_not_exceeded(stingy: Peer) -> None:
    stingy.send(settings({INITIAL_WINDOW: LARGEST_WINDOW}))
    stream = asked(stingy, 100_000)
    came(stingy, stream, WINDOW)
    stingy.send(window_update(0, 1))
    came(stingy, stream, WINDOW + 1)
    stingy.send(window_update(0, LARGEST_WINDOW))
    assert stingy.answer(stream).body == pattern(99_995)


def test_6_9_1_a_window_of_one_byte_at_a_time_passes_a_whole_answer(stingy: Peer) -> None:
    stingy.send(settings({INITIAL_WINDOW: 0}))
    stream = asked(stingy, 200)
    settled(stingy)
    for total in range(1, 201):
        assert stingy.answers[stream].flow == total - 1
        stingy.send(window_update(stream, 1))
        stingy.read_flow(stream, total)
    assert stingy.answer(stream).body == pattern(195)


def test_6_9_headers_and_trailers_need_no_window(stingy: Peer) -> None:
    stingy.send(settings({INITIAL_WINDOW: 0}))
    assert stingy.call("/no.such/Method", b"").status == 12
    stream = stingy.open(STREAM)
    stingy.data(stream, b"", end=True)
    assert stingy.answer(stream).status == 0


def test_6_9_2_a_larger_initial_window_opens_streams_that_wait(stingy: Peer) -> None:
    first, second = asked(stingy, 5_000), asked(stingy, 6_000)
    came(stingy, first, 1_000)
    came(stingy, second, 1_000)
    stingy.send(settings({INITIAL_WINDOW: 1_700}))
    came(stingy, first, 1_700)
    came(stingy, second, 1_700)


def test_6_9_2_a_smaller_initial_window_makes_windows_negative(stingy: Peer) -> None:
    stream = asked(stingy, 5_000)
    came(stingy, stream, 1_000)
    stingy.send(settings({INITIAL_WINDOW: 100}))  # the window is -900 now
    stingy.send(window_update(stream, 899))
    came(stingy, stream, 1_000)
    stingy.send(window_update(stream, 1))
    came(stingy, stream, 1_000)
    stingy.send(window_update(stream, 1))
    came(stingy, stream, 1_001)
    stingy.send(settings({INITIAL_WINDOW: 102}))
    came(stingy, stream, 1_003)


def test_6_9_2_initial_windows_do_not_touch_the_connections(stingy: Peer) -> None:
    stingy.send(settings({INITIAL_WINDOW: 0}), settings({INITIAL_WINDOW: LARGEST_WINDOW}))
    stream = asked(stingy, 100_000)
    came(stingy, stream, WINDOW)


def test_6_9_1_streams_that_share_the_connections_window_all_end(stingy: Peer) -> None:
    stingy.send(settings({INITIAL_WINDOW: LARGEST_WINDOW}))
    streams = [asked(stingy, 50_000) for _ in range(5)]
    given = WINDOW
    while not all(stingy.answers[stream].over for stream in streams):
        flow = sum(stingy.answers[stream].flow for stream in streams)
        assert flow <= given
        if flow == given:
            stingy.send(window_update(0, 777))
            given += 777
        stingy.read()
    assert {stingy.answers[stream].body for stream in streams} == {pattern(49_995)}


def test_6_9_1_a_stream_without_a_window_does_not_stop_another(stingy: Peer) -> None:
    shut = asked(stingy, 5_000)
    came(stingy, shut, 1_000)
    for _ in range(3):
        open_ = asked(stingy, 900)
        assert stingy.answer(open_).body == pattern(895)
    stingy.send(window_update(shut, 10_000))
    assert stingy.answer(shut).body == pattern(4_995)


def test_6_9_1_a_stream_that_is_reset_frees_the_share_it_waited_for(stingy: Peer) -> None:
    stingy.send(settings({INITIAL_WINDOW: LARGEST_WINDOW}))
    greedy = asked(stingy, 1_000_000)
    came(stingy, greedy, WINDOW)
    waiting = asked(stingy, 1_000)
    stingy.send(frame(0x3, 0, greedy, b"\0\0\0\x08"), window_update(0, 1_000))
    assert stingy.answer(waiting).body == pattern(995)


def test_6_9_windows_that_are_shut_bound_nobody_on_other_connections(
    stingy: Peer, bystander: Peer
) -> None:
    for _ in range(20):
        asked(stingy, 1_000_000)
    for _ in range(20):
        bystander.echo()
    assert bystander.call(LARGE, b"1000000").body == pattern(1_000_000)


def test_4_2_no_frame_of_the_server_is_larger_than_it_may_be(connect: Connect) -> None:
    peer = connect({INITIAL_WINDOW: 1 << 20})
    assert peer.call(LARGE, b"200000").body == pattern(200_000)
    assert max(len(taken.payload) for taken in peer.frames) <= FRAME_BYTES
    peer.send(settings({MAX_FRAME: FRAME_BYTES + 7}))
    assert peer.call(LARGE, b"200000").body == pattern(200_000)
    assert max(len(taken.payload) for taken in peer.frames) <= FRAME_BYTES + 7


def test_6_9_1_a_window_of_all_it_can_be_is_taken(connect: Connect) -> None:
    peer = connect({INITIAL_WINDOW: LARGEST_WINDOW})
    peer.send(window_update(0, LARGEST_WINDOW - WINDOW))
    peer.obliging = False
    peer.greeted()
    assert peer.call(LARGE, b"3000000").body == pattern(3_000_000)


# -- WINDOW_UPDATE that is none ------------------------------------------------------------------


def test_6_9_an_increment_of_zero_is_an_error_of_the_connection(
    peer: Peer, bystander: Peer
) -> None:
    peer.send(window_update(0, 0))
    peer.connection_error(PROTOCOL_ERROR)


def test_6_9_an_increment_of_zero_is_an_error_of_the_stream(peer: Peer) -> None:
    stream = peer.open(STREAM)
    peer.send(window_update(stream, 0))
    peer.stream_error(stream, PROTOCOL_ERROR)


def test_6_9_the_reserved_bit_of_an_increment_is_ignored(stingy: Peer) -> None:
    stream = asked(stingy, 5_000)
    came(stingy, stream, 1_000)
    stingy.send(window_update(stream, (1 << 31) + 1))
    came(stingy, stream, 1_001)


def test_6_9_1_a_window_beyond_the_largest_is_an_error_of_the_connection(
    peer: Peer, bystander: Peer
) -> None:
    peer.send(window_update(0, LARGEST_WINDOW - WINDOW), window_update(0, 1))
    peer.connection_error(FLOW_CONTROL_ERROR)


def test_6_9_1_a_window_beyond_the_largest_is_an_error_of_the_stream(peer: Peer) -> None:
    stream = peer.open(STREAM)
    peer.send(window_update(stream, LARGEST_WINDOW - WINDOW), window_update(stream, 1))
    peer.stream_error(stream, FLOW_CONTROL_ERROR)


def test_6_9_2_settings_that_carry_a_window_beyond_the_largest_are_a_connection_error(
    peer: Peer,
) -> None:
    stream = peer.open(STREAM)
    peer.send(window_update(stream, 1), settings({INITIAL_WINDOW: LARGEST_WINDOW}))
    peer.connection_error(FLOW_CONTROL_ERROR)


# -- what the server takes -----------------------------------------------------------------------


def test_6_9_an_upload_of_64_mib_passes(connect: Connect) -> None:
    peer = connect({INITIAL_WINDOW: LARGEST_WINDOW})
    peer.send(window_update(0, LARGEST_WINDOW - WINDOW))
    stream = peer.begin(STREAM)
    body = pattern(1 << 20)
    for number in range(64):
        peer.upload(stream, message(body), end=number == 63)
        # Each echo is read before the next: the upload is what is under test.
        peer.read_until(lambda: len(peer.answers[stream].data) >= len(body) + 5)
        assert peer.answers[stream].messages == [body]
        peer.answers[stream].data.clear()
    assert peer.answer(stream).status == 0


def test_6_9_uploads_share_the_connections_window_and_all_pass(peer: Peer) -> None:
    body = pattern(300_000)
    streams = [peer.begin(UNARY) for _ in range(8)]
    sent = message(body)
    for at in range(0, len(sent), 10_000):
        for stream in streams:
            peer.upload(stream, sent[at : at + 10_000], end=at + 10_000 >= len(sent))
    assert {peer.answer(stream).body for stream in streams} == {body}


def test_6_9_1_padding_counts_and_its_window_comes_back(peer: Peer) -> None:
    """Were padding not given back, the connection would starve after some hundred frames."""
    stream, body = peer.begin(UNARY), pattern(2_000)
    for byte in message(body):
        payload = padded(bytes([byte]), 255)
        peer.read_until(lambda: min(peer.window, peer.windows[stream]) > 256)
        peer.send(frame(DATA, PADDED, stream, payload))
        peer.window -= len(payload)
        peer.windows[stream] -= len(payload)
    peer.data(stream, b"", end=True)
    assert peer.answer(stream).body == body


def test_6_9_data_of_streams_that_are_over_gives_its_window_back(peer: Peer) -> None:
    """It counts for the connection all the same: else cancelled uploads would starve it."""
    for _ in range(120):
        stream = peer.begin(UNARY)
        peer.upload(stream, message(pattern(60_000))[:50_000])
        peer.send(frame(0x3, 0, stream, b"\0\0\0\x08"))
    for _ in range(120):
        stream = peer.begin("/no.such/Method")
        peer.upload(stream, message(pattern(60_000))[:50_000])
        peer.data(stream, b"", end=True)
        peer.answer(stream)
    peer.echo()


def test_6_9_1_more_than_the_window_is_an_error(connect: Connect, bystander: Peer) -> None:
    """None of the answers can leave, so the server must shut its windows at some time."""
    peer = connect({INITIAL_WINDOW: 0}, obliging=False)
    stream = peer.begin(STREAM)
    body = message(pattern(FRAME_BYTES - 5))
    try:
        for _ in range((64 << 20) // len(body)):
            peer.data(stream, body)
    except Closed:
        return
    peer.stream_error(stream, FLOW_CONTROL_ERROR)


def test_6_9_empty_data_needs_no_window_and_may_end_the_stream(peer: Peer) -> None:
    stream = peer.begin(UNARY)
    sent = message(b"empty frames between")
    for byte in sent:
        peer.send(frame(DATA, 0, stream), frame(DATA, 0, stream, bytes([byte])))
    peer.send(frame(DATA, END_STREAM, stream))
    assert peer.answer(stream).body == b"empty frames between"


def test_6_9_a_reader_that_does_not_read_is_not_read_for_without_bound(
    peer: Peer, bystander: Peer
) -> None:
    """Its answers are not taken, so the service reads no more of it; the windows stay shut then
    and what it sent fits into them."""
    peer.obliging = False
    stream = peer.begin(STREAM)
    body = message(pattern(100_000))
    sent = 0
    peer.socket.settimeout(1.0)
    try:
        while sent < 64 << 20:
            peer.upload(stream, body)
            sent += len(body)
    except TimeoutError:
        pass
    assert sent < 32 << 20
    bystander.echo()


# -- the room for large messages -----------------------------------------------------------------

MIB = 1 << 20
MORE_THAN_THERE_IS = 70
"""Times a MiB: what is not given back would leave no room for another."""
RESOURCE_EXHAUSTED, UNIMPLEMENTED = 8, 12


def echo_large(peer: Peer) -> None:
    """Assert that a message which needs room is served."""
    stream, sent = peer.begin(UNARY), bytes(2 * MIB)
    peer.upload(stream, message(sent), end=True)
    assert peer.answer(stream).body == sent


def test_the_room_of_a_message_too_many_is_given_back(peer: Peer) -> None:
    for _ in range(MORE_THAN_THERE_IS):
        stream = peer.open(UNARY, b"the one that is expected")
        peer.upload(stream, message(bytes(MIB)))
        assert peer.answer(stream).status == UNIMPLEMENTED
    echo_large(peer)


def test_the_room_of_a_message_that_nobody_read_is_given_back(peer: Peer) -> None:
    for _ in range(MORE_THAN_THERE_IS):
        stream = peer.begin("/test.Echo/Deaf")
        peer.upload(stream, message(bytes(MIB)))
        settled(peer)
        peer.send(rst_stream(stream))
    echo_large(peer)


def test_a_message_that_stalls_gives_way_to_others_and_one_alone_may_take_its_time() -> None:
    limits = Limits(message_bytes=128 * MIB, stalled_s=0.3)
    with EchoProcess(limits) as server, Peer(server.address) as peer:
        alone = peer.begin(UNARY)
        sent = message(bytes(MIB))
        peer.data(alone, sent[:5])
        time.sleep(3 * limits.stalled_s)
        peer.upload(alone, sent[5:], end=True)
        assert peer.answer(alone).messages == [bytes(MIB)]
        silent = peer.begin(UNARY)
        peer.data(silent, b"\0" + (100 * MIB).to_bytes(4, "big"))
        echo_large(peer)
        assert peer.answer(silent).status == RESOURCE_EXHAUSTED

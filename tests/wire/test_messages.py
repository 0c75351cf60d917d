"""Rules of gRPC about messages: prefixes, how DATA cuts them, how many, compression, size."""

from __future__ import annotations

import gzip
import struct
import zlib

import pytest

from wire.echo_process import EchoProcess
from wire.echo_server import pattern
from wire.peer import (
    DATA,
    END_STREAM,
    LARGE,
    STREAM,
    UNARY,
    Answer,
    Peer,
    frame,
    header_frames,
    literals,
    message,
    request,
)

RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 8, 12, 13


def sent(peer: Peer, fields: object, data: bytes) -> Answer:
    """A call whose DATA is this, in one frame that ends the stream."""
    stream = peer.new_stream()
    listed = request(fields) if isinstance(fields, str) else fields
    peer.send(header_frames(stream, literals(listed)))  # type: ignore[arg-type]
    peer.data(stream, data, end=True)
    return peer.answer(stream)


# -- how DATA cuts messages ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_message_may_be_cut_anywhere(peer: Peer, path: str) -> None:
    whole = message(b"cut anywhere")
    for at in range(len(whole) + 1):
        stream = peer.begin(path)
        peer.send(frame(DATA, 0, stream, whole[:at]), frame(DATA, END_STREAM, stream, whole[at:]))
        assert peer.answer(stream).body == b"cut anywhere", at


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_message_may_come_byte_by_byte(peer: Peer, path: str) -> None:
    stream = peer.begin(path)
    for byte in message(b"drop by drop"):
        peer.data(stream, bytes([byte]))
    peer.data(stream, b"", end=True)
    assert peer.answer(stream).body == b"drop by drop"


def test_a_frame_may_hold_many_messages(peer: Peer) -> None:
    bodies = [b"m" * size for size in range(20)]
    answer = sent(peer, STREAM, b"".join(map(message, bodies)))
    assert (answer.status, answer.messages) == (0, bodies)


def test_messages_and_frames_may_end_at_any_places(peer: Peer) -> None:
    bodies = [b"first", b"", b"third"]
    whole = b"".join(map(message, bodies))
    for size in range(1, len(whole)):
        stream = peer.begin(STREAM)
        for at in range(0, len(whole), size):
            peer.data(stream, whole[at : at + size], end=at + size >= len(whole))
        answer = peer.answer(stream)
        assert (answer.status, answer.messages) == (0, bodies), size


def test_an_empty_message_is_one(peer: Peer) -> None:
    assert peer.call(UNARY, b"").body == b""
    answer = peer.call(STREAM, b"", b"", b"")
    assert (answer.status, answer.messages) == (0, [b""] * 3)


def test_the_stream_may_end_on_an_empty_frame(peer: Peer) -> None:
    stream = peer.open(UNARY, b"body")
    peer.data(stream, b"", end=True)
    assert peer.answer(stream).body == b"body"


def test_a_stream_without_messages_is_answered_with_none(peer: Peer) -> None:
    answer = peer.call(STREAM)
    assert (answer.status, answer.messages) == (0, [])


def test_messages_of_streams_that_are_mixed_do_not_mix(peer: Peer) -> None:
    streams = [peer.begin(STREAM) for _ in range(10)]
    wholes = {s: message(b"%d" % s * 9) + message(b"again %d" % s) for s in streams}
    for at in range(max(map(len, wholes.values()))):
        peer.send(*(frame(DATA, 0, s, wholes[s][at : at + 1]) for s in streams))
    for stream in streams:
        peer.data(stream, b"", end=True)
        answer = peer.answer(stream)
        assert answer.messages == [b"%d" % stream * 9, b"again %d" % stream]


# -- what is no message --------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 9))
@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_message_that_is_cut_off_by_the_end_is_an_error(peer: Peer, path: str, cut: int) -> None:
    answer = sent(peer, path, message(b"body")[:-cut])
    assert answer.reset is not None or answer.status != 0
    assert not answer.data
    peer.echo()


@pytest.mark.parametrize("flag", [2, 0x80, 0xFF])
def test_a_compressed_flag_that_is_none_is_an_error(peer: Peer, flag: int) -> None:
    answer = sent(peer, UNARY, message(b"body", flag))
    assert answer.reset is not None or answer.status == INTERNAL
    assert not answer.data
    peer.echo()


def test_two_messages_of_a_unary_call_are_an_error(peer: Peer) -> None:
    """The table of status codes says UNIMPLEMENTED; servers that say INTERNAL are about as many."""
    answer = sent(peer, UNARY, message(b"one") + message(b"two"))
    assert answer.reset is not None or answer.status in (UNIMPLEMENTED, INTERNAL)
    assert not answer.data
    peer.echo()


@pytest.mark.parametrize("how", ["headers", "data"])
def test_no_message_of_a_unary_call_is_an_error(peer: Peer, how: str) -> None:
    answer = peer.call(UNARY) if how == "headers" else sent(peer, UNARY, b"")
    assert answer.reset is not None or answer.status in (UNIMPLEMENTED, INTERNAL)
    assert not answer.data
    peer.echo()


# -- compression ---------------------------------------------------------------------------------


def encoding(name: str, path: str = UNARY) -> object:
    return request(path, ("grpc-encoding", name))


@pytest.mark.parametrize("fields", [request(), encoding("identity")], ids=["none", "identity"])
def test_a_compressed_message_without_an_encoding_is_an_internal_error(
    peer: Peer, fields: object
) -> None:
    answer = sent(peer, fields, message(gzip.compress(b"body"), 1))
    assert (answer.status, bytes(answer.data)) == (INTERNAL, b"")
    peer.echo()


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_messages_are_read_if_their_encoding_is_offered(peer: Peer, name: str) -> None:
    packed = (gzip if name == "gzip" else zlib).compress(pattern(10_000))
    answer = sent(peer, encoding(name), message(packed, 1))
    offered = {
        word.strip()
        for block in answer.blocks
        for field, value in block
        if field == "grpc-accept-encoding"
        for word in value.split(",")
    }
    if name in offered or answer.status == 0:
        assert answer.body == pattern(10_000)
    else:
        assert answer.status == UNIMPLEMENTED
        assert offered, "an answer that refuses an encoding names those that are taken"
    peer.echo()


def test_an_unknown_encoding_is_unimplemented_and_those_known_are_named(peer: Peer) -> None:
    answer = sent(peer, encoding("x-secret"), message(b"body", 1))
    assert (answer.status, bytes(answer.data)) == (UNIMPLEMENTED, b"")
    assert "grpc-accept-encoding" in answer.headers
    peer.echo()


def test_identity_and_uncompressed_messages_of_a_compressed_stream_are_read(peer: Peer) -> None:
    assert sent(peer, encoding("identity"), message(b"body")).body == b"body"
    answer = sent(peer, encoding("gzip"), message(b"body"))
    assert answer.status == UNIMPLEMENTED or answer.body == b"body"


@pytest.mark.parametrize("name", ["gzip", "deflate"])
@pytest.mark.parametrize("how", ["garbage", "cut", "empty"])
def test_what_cannot_be_unpacked_is_an_error(peer: Peer, name: str, how: str) -> None:
    packed = (gzip if name == "gzip" else zlib).compress(pattern(1_000))
    wrong = {"garbage": b"\x17" * 100, "cut": packed[: len(packed) // 2], "empty": b""}[how]
    answer = sent(peer, encoding(name), message(wrong, 1))
    assert answer.status in (INTERNAL, UNIMPLEMENTED)
    assert not answer.data
    peer.echo()


# -- size ----------------------------------------------------------------------------------------


def test_a_message_of_the_largest_size_is_served(peer: Peer, server: EchoProcess) -> None:
    body = pattern(server.limits.message_bytes)
    stream = peer.begin(UNARY)
    peer.upload(stream, message(body), end=True)
    assert peer.answer(stream).body == body


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_larger_message_is_refused_when_its_length_is_known(
    peer: Peer, server: EchoProcess, path: str
) -> None:
    """The prefix says it: nobody needs to send, or keep, the rest."""
    stream = peer.begin(path)
    peer.data(stream, struct.pack(">BI", 0, server.limits.message_bytes + 1) + b"the beginning")
    answer = peer.answer(stream)
    assert (answer.status, bytes(answer.data)) == (RESOURCE_EXHAUSTED, b"")
    peer.echo()


def test_a_length_of_four_gib_allocates_nothing(peer: Peer, server: EchoProcess) -> None:
    before = server.resident_bytes
    for _ in range(50):
        stream = peer.begin(UNARY)
        peer.data(stream, struct.pack(">BI", 0, 2**32 - 1) + b"the beginning")
        assert peer.answer(stream).status == RESOURCE_EXHAUSTED
    assert server.resident_bytes - before < 32 << 20
    peer.echo()


def test_a_message_that_is_too_large_once_unpacked_is_refused(
    peer: Peer, server: EchoProcess
) -> None:
    packed = gzip.compress(bytes(server.limits.message_bytes + 1))
    answer = sent(peer, encoding("gzip"), message(packed, 1)[:60_000])
    assert answer.status in (RESOURCE_EXHAUSTED, UNIMPLEMENTED)
    assert not answer.data
    peer.echo()


def test_messages_behind_one_that_is_too_large_are_not_served(
    peer: Peer, server: EchoProcess
) -> None:
    stream = peer.begin(STREAM)
    peer.data(stream, message(b"fine"))
    peer.read_until(lambda: peer.answers[stream].data)
    peer.data(stream, struct.pack(">BI", 0, server.limits.message_bytes + 1) + message(b"inside"))
    answer = peer.answer(stream)
    assert (answer.status, answer.messages) == (RESOURCE_EXHAUSTED, [b"fine"])
    assert peer.call(LARGE, b"10").body == pattern(10)

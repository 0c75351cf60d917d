"""Header compression: tables over many requests, their sizes, Huffman, bad blocks (RFC 7541)."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hpack import Encoder

from wire.conftest import Connect
from wire.peer import (
    COMPRESSION_ERROR,
    DATA,
    END_STREAM,
    HEADER_TABLE,
    UNARY,
    Peer,
    frame,
    header_frames,
    integer,
    literal,
    literals,
    message,
    request,
    settings,
    string,
)

METADATA = "/test.Echo/Metadata"

FIRST_DYNAMIC = 62
"""The index of the field that was added last (2.3.3): 61 are in the static table."""


def learnt(name: str, value: str | bytes) -> bytes:
    """A literal that is added to the table (6.2.1)."""
    return b"\x40" + string(name) + string(value)


def indexed(index: int) -> bytes:
    """A field of a table (6.1)."""
    return integer(index, 7, 0x80)


def table_size(size: int) -> bytes:
    """A dynamic table size update (6.3)."""
    return integer(size, 5, 0x20)


def metadata(peer: Peer, block: bytes) -> dict[str, str]:
    """What a call with that header block brings of metadata of its own."""
    stream = peer.new_stream()
    peer.send(header_frames(stream, block), frame(DATA, END_STREAM, stream, message(b"")))
    listed: Iterable[tuple[str, str]] = json.loads(peer.answer(stream).body)
    return {name: value for name, value in listed if name.startswith("x-")}


METADATA_CALL = literals(request(METADATA))


# -- 2.3 and 6.1, tables -------------------------------------------------------------------------


def test_an_encoder_that_learns_over_a_hundred_requests_is_followed(peer: Peer) -> None:
    encoder = Encoder()
    for number in range(100):
        sent = {"x-same": "always", "x-other": f"{number % 7}", f"x-{number % 5}": f"{number}"}
        fields = [*request(METADATA), *sent.items()]
        assert metadata(peer, encoder.encode(fields)) == sent, number


@pytest.mark.parametrize("size", [0, 64, 200, 4_096])
def test_an_encoder_with_a_small_table_is_followed(peer: Peer, size: int) -> None:
    encoder = Encoder()
    encoder.header_table_size = size
    for number in range(50):
        sent = {"x-same": "always", "x-other": f"{number % 7}", f"x-{number % 5}": f"{number}"}
        assert metadata(peer, encoder.encode([*request(METADATA), *sent.items()])) == sent


def test_2_3_3_indices_move_as_fields_are_added(peer: Peer) -> None:
    assert metadata(peer, METADATA_CALL + learnt("x-a", "1")) == {"x-a": "1"}
    assert metadata(peer, METADATA_CALL + learnt("x-b", "2")) == {"x-b": "2"}
    assert metadata(peer, METADATA_CALL + indexed(FIRST_DYNAMIC)) == {"x-b": "2"}
    assert metadata(peer, METADATA_CALL + indexed(FIRST_DYNAMIC + 1)) == {"x-a": "1"}
    both = indexed(FIRST_DYNAMIC + 1) + learnt("x-c", "3") + indexed(FIRST_DYNAMIC + 1)
    assert metadata(peer, METADATA_CALL + both) == {"x-a": "1", "x-c": "3", "x-b": "2"}


def test_the_same_bytes_mean_something_else_when_the_table_has_changed(peer: Peer) -> None:
    """Whoever keeps what a block meant by its bytes must see that its table is another one now."""
    block = METADATA_CALL + indexed(FIRST_DYNAMIC)
    for number in range(20):
        assert metadata(peer, METADATA_CALL + learnt("x-n", f"{number}")) == {"x-n": f"{number}"}
        for _ in range(3):
            assert metadata(peer, block) == {"x-n": f"{number}"}


def test_the_same_bytes_on_another_connection_mean_what_its_own_table_says(
    connect: Connect,
) -> None:
    peers = [connect() for _ in range(4)]
    block = METADATA_CALL + indexed(FIRST_DYNAMIC)
    for number, peer in enumerate(peers):
        metadata(peer, METADATA_CALL + learnt("x-who", f"{number}"))
    for _ in range(3):
        for number, peer in enumerate(peers):
            assert metadata(peer, block) == {"x-who": f"{number}"}


def test_a_block_that_is_sent_twice_adds_its_fields_twice(peer: Peer) -> None:
    """A cached block must still change the table, each time."""
    block = METADATA_CALL + learnt("x-twice", "yes")
    for _ in range(3):
        assert metadata(peer, block) == {"x-twice": "yes"}
    assert metadata(peer, METADATA_CALL + learnt("x-last", "1")) == {"x-last": "1"}
    for back in (1, 2, 3):
        assert metadata(peer, METADATA_CALL + indexed(FIRST_DYNAMIC + back)) == {"x-twice": "yes"}
    stream = peer.new_stream()
    peer.send(header_frames(stream, METADATA_CALL + indexed(FIRST_DYNAMIC + 4)))
    peer.connection_error(COMPRESSION_ERROR)


def test_a_block_that_is_cut_adds_its_fields_once(peer: Peer) -> None:
    block = METADATA_CALL + learnt("x-a", "1") + learnt("x-b", "2")
    stream = peer.new_stream()
    peer.send(
        header_frames(stream, block, sizes=[len(METADATA_CALL) + 3, 1, 0, 5]),
        frame(DATA, END_STREAM, stream, message(b"")),
    )
    peer.answer(stream)
    assert metadata(peer, METADATA_CALL + indexed(FIRST_DYNAMIC + 1)) == {"x-a": "1"}
    stream = peer.new_stream()
    peer.send(header_frames(stream, METADATA_CALL + indexed(FIRST_DYNAMIC + 2)))
    peer.connection_error(COMPRESSION_ERROR)


def test_requests_that_change_one_field_are_not_mixed_up(peer: Peer) -> None:
    """By turns, so that each differs from the one before in path, metadata or deadline alone."""
    encoder = Encoder()

    def answer(path: str, **extra: str) -> bytes:
        stream = peer.new_stream()
        fields = [*request(path), *((k.replace("_", "-"), v) for k, v in extra.items())]
        peer.send(header_frames(stream, encoder.encode(fields)))
        peer.data(stream, message(b"3"), end=True)
        return peer.answer(stream).body

    for number in range(30):
        assert answer(UNARY, x_n="1") == b"3"
        assert answer("/test.Echo/Large", x_n="1") == b"\0\0\0"
        assert answer("/test.Echo/Remaining") == b"none"
        assert float(answer("/test.Echo/Remaining", grpc_timeout="100S")) < 101
        assert float(answer("/test.Echo/Remaining", grpc_timeout="900S")) > 700
        assert json.loads(answer(METADATA, x_n=f"{number}"))[-1] == ["x-n", f"{number}"]


@pytest.mark.parametrize("first", [0x00, 0x10], ids=["without-indexing", "never-indexed"])
def test_6_2_literals_that_are_not_indexed_leave_the_table(peer: Peer, first: int) -> None:
    metadata(peer, METADATA_CALL + learnt("x-kept", "1"))
    literal_ = bytes([first]) + string("x-passing") + string("2")
    assert metadata(peer, METADATA_CALL + literal_) == {"x-passing": "2"}
    named = integer(FIRST_DYNAMIC, 4, first) + string("3")
    assert metadata(peer, METADATA_CALL + named) == {"x-kept": "3"}
    assert metadata(peer, METADATA_CALL + indexed(FIRST_DYNAMIC)) == {"x-kept": "1"}


def test_4_4_a_field_larger_than_the_table_empties_it(peer: Peer) -> None:
    metadata(peer, METADATA_CALL + learnt("x-a", "1"))
    assert metadata(peer, METADATA_CALL + learnt("x-large", "v" * 4_096)) == {
        "x-large": "v" * 4_096
    }
    stream = peer.new_stream()
    peer.send(header_frames(stream, METADATA_CALL + indexed(FIRST_DYNAMIC)))
    peer.connection_error(COMPRESSION_ERROR)


def test_4_1_the_oldest_fields_leave_a_full_table(peer: Peer) -> None:
    # Each takes 32 bytes and those of its name and value (4.1): 4096 / 128 fit.
    for number in range(33):
        metadata(peer, METADATA_CALL + learnt(f"x-{number:03}", "v" * 91))
    assert metadata(peer, METADATA_CALL + indexed(FIRST_DYNAMIC + 31)) == {"x-001": "v" * 91}
    stream = peer.new_stream()
    peer.send(header_frames(stream, METADATA_CALL + indexed(FIRST_DYNAMIC + 32)))
    peer.connection_error(COMPRESSION_ERROR)


# -- 4.2 and 6.3, size of the table --------------------------------------------------------------


def test_6_3_a_table_that_shrinks_to_nothing_is_empty(peer: Peer) -> None:
    metadata(peer, METADATA_CALL + learnt("x-a", "1"))
    assert metadata(peer, table_size(0) + table_size(4_096) + METADATA_CALL) == {}
    stream = peer.new_stream()
    peer.send(header_frames(stream, METADATA_CALL + indexed(FIRST_DYNAMIC)))
    peer.connection_error(COMPRESSION_ERROR)


def test_6_3_a_table_that_shrinks_keeps_what_still_fits(peer: Peer) -> None:
    metadata(peer, METADATA_CALL + learnt("x-a", "1") + learnt("x-b", "2"))
    assert metadata(peer, table_size(40) + METADATA_CALL + indexed(FIRST_DYNAMIC)) == {"x-b": "2"}
    stream = peer.new_stream()
    peer.send(header_frames(stream, METADATA_CALL + indexed(FIRST_DYNAMIC + 1)))
    peer.connection_error(COMPRESSION_ERROR)


def test_6_3_a_table_larger_than_settings_allow_is_a_connection_error(peer: Peer) -> None:
    size = peer.server.get(HEADER_TABLE, 4_096) + 1
    peer.send(header_frames(1, table_size(size) + METADATA_CALL))
    peer.connection_error(COMPRESSION_ERROR)


def test_4_2_a_size_update_behind_a_field_is_a_connection_error(peer: Peer) -> None:
    peer.send(header_frames(1, METADATA_CALL + table_size(0)))
    peer.connection_error(COMPRESSION_ERROR)


@pytest.mark.parametrize("size", [0, 50, 4_096, 1 << 20])
def test_4_2_the_servers_table_is_no_larger_than_the_client_allows(
    connect: Connect, size: int
) -> None:
    """The decoder of the peer refuses what is larger, and blocks that do not tell of a smaller
    one."""
    peer = connect({HEADER_TABLE: size})
    peer.decoder.max_allowed_table_size = size
    for _ in range(5):
        peer.echo()
    peer.decoder.max_allowed_table_size = 10
    peer.send(settings({HEADER_TABLE: 10}))
    peer.read_until(lambda: peer.settings_acked == 2)
    for _ in range(5):
        peer.echo()


# -- 5.2, Huffman --------------------------------------------------------------------------------


def test_5_2_huffman_codes_of_all_printable_characters_are_read(peer: Peer) -> None:
    printable = "".join(chr(code) for code in range(0x21, 0x7F))
    block = Encoder().encode([*request(METADATA), ("x-all", printable)], huffman=True)
    assert metadata(peer, block) == {"x-all": printable}


def huffman(coded: bytes) -> bytes:
    """A field with such a value."""
    return b"\x00" + string("x-h") + integer(len(coded), 7, 0x80) + coded


@pytest.mark.parametrize(
    "coded",
    [
        b"\x1f\xff",  # "a" (00011), then eleven bits of padding
        b"\x18",  # "a", padded with zeros
        b"\xff\xff\xff\xff",  # the end-of-string code
    ],
    ids=["long-padding", "zero-padding", "end-of-string"],
)
def test_5_2_huffman_codes_that_are_none_are_a_connection_error(
    peer: Peer, bystander: Peer, coded: bytes
) -> None:
    peer.send(header_frames(1, METADATA_CALL + huffman(coded)))
    peer.connection_error(COMPRESSION_ERROR)


# -- blocks that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x80",
        indexed(FIRST_DYNAMIC),
        indexed(10_000),
        integer(FIRST_DYNAMIC, 6, 0x40) + string("v"),
        b"\xff" + b"\xff" * 12 + b"\x01",
        b"\x00" + b"\x7f" + b"\xff" * 12 + b"\x01",
        b"\x00" + string("x-name")[:-1],
        b"\x00" + string("x-name"),
        b"\x00" + string("x-name") + b"\x05four",
        b"\x00" + string("x-name") + b"\x7f\x80",
        b"\x40",
        b"\x3f",
    ],
    ids=[
        *("index-0", "index-of-none", "index-far", "name-of-none", "endless-index"),
        *("endless-length", "cut-name", "no-value", "cut-value", "cut-length", "nothing"),
        "cut-size",
    ],
)
@pytest.mark.parametrize("refused", [False, True], ids=["served", "trailers"])
def test_4_3_a_block_that_cannot_be_read_is_a_connection_error(
    peer: Peer, bystander: Peer, wrong: bytes, refused: bool
) -> None:
    if refused:
        stream = peer.open("/test.Echo/Stream")
        peer.send(header_frames(stream, wrong, end=True))
    else:
        peer.send(header_frames(1, METADATA_CALL + wrong))
    peer.connection_error(COMPRESSION_ERROR)


def test_5_1_an_integer_may_be_written_at_greater_length(peer: Peer) -> None:
    index = b"\x0f" + bytes([FIRST_DYNAMIC - 15 | 0x80]) + b"\x80\x00"
    metadata(peer, METADATA_CALL + learnt("x-a", "1"))
    assert metadata(peer, METADATA_CALL + index + string("2")) == {"x-a": "2"}


def test_5_1_an_integer_of_thousands_of_digits_is_a_connection_error(
    peer: Peer, bystander: Peer
) -> None:
    """An index that no table has; that the server logs nothing is asserted when it ends."""
    peer.send(header_frames(1, b"\xff" + b"\xff" * 16_000 + b"\x01"))
    peer.connection_error(COMPRESSION_ERROR)


def test_an_empty_block_lacks_what_a_request_must_have(peer: Peer) -> None:
    for block in (b"", literal("x-only", "this")):
        stream = peer.new_stream()
        peer.send(header_frames(stream, block, end=True))
        assert peer.answer(stream).refused
    peer.echo()

"""Rules of gRPC about calls: requests, statuses, deadlines and metadata (PROTOCOL-HTTP2).

Where that document leaves a choice, so do these tests: a call that is refused must end, whole, and
tell why; its connection must go on.
"""

from __future__ import annotations

import base64
import json
from urllib.parse import unquote

import pytest

from wire.echo_server import TRAILERS, pattern
from wire.peer import (
    CANCEL,
    FAIL,
    HOLD,
    LARGE,
    PROTOCOL_ERROR,
    STREAM,
    UNARY,
    Answer,
    Fields,
    Peer,
    header_frames,
    literals,
    message,
    request,
)

METADATA = "/test.Echo/Metadata"
REMAINING = "/test.Echo/Remaining"

DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL = 4, 12, 13


def taken(peer: Peer, fields: Fields, body: bytes = b"body") -> Answer:
    """A unary call sent at one go, whether or not it is ended early."""
    stream = peer.new_stream()
    peer.send(header_frames(stream, literals(fields)))
    peer.data(stream, message(body), end=True)
    return peer.answer(stream)


# -- answers -------------------------------------------------------------------------------------


def test_a_good_answer_has_headers_messages_and_trailers(peer: Peer) -> None:
    answer = peer.call(UNARY, b"body")
    headers, trailers = answer.blocks
    assert headers[0] == (":status", "200")
    assert dict(headers)["content-type"].startswith("application/grpc")
    assert dict(trailers)["grpc-status"] == "0"
    assert not [name for name, _ in trailers if name.startswith(":")]
    assert answer.messages == [b"body"]


def test_an_immediate_error_may_be_trailers_only(peer: Peer) -> None:
    answer = peer.call("/no.such.Service/Method", b"body")
    assert answer.headers[":status"] == "200"
    assert answer.headers["content-type"].startswith("application/grpc")
    assert (answer.status, bytes(answer.data)) == (UNIMPLEMENTED, b"")


@pytest.mark.parametrize(
    "path",
    ["/test.Echo/Nothing", "/test.Nothing/Unary", "/test.Echo/", "/test.Echo/Unary/", "/", "//"],
)
def test_an_unknown_method_is_unimplemented(peer: Peer, path: str) -> None:
    assert peer.call(path, b"body").status == UNIMPLEMENTED
    peer.echo()


@pytest.mark.parametrize("path", ["", "*", "test.Echo/Unary"])
def test_a_path_that_is_none_is_refused(peer: Peer, path: str) -> None:
    assert taken(peer, request(path)).refused
    peer.echo()


def test_an_unknown_method_is_answered_before_its_request_is_whole(peer: Peer) -> None:
    stream = peer.begin("/test.Echo/Nothing")
    assert peer.answer(stream).status == UNIMPLEMENTED
    peer.echo()


@pytest.mark.parametrize("code", range(1, 17))
def test_a_behaviour_ends_with_any_status_and_its_trailers(peer: Peer, code: int) -> None:
    answer = peer.call(FAIL, b"because", extra=[("fail-code", str(code))])
    assert (answer.status, bytes(answer.data)) == (code, b"")
    assert answer.trailers["grpc-message"] == "because"
    assert answer.trailers["fail-note"] == TRAILERS[0][1]
    encoded = answer.trailers["fail-note-bin"]
    assert base64.b64decode(encoded + "=" * (-len(encoded) % 4)) == TRAILERS[1][1]


@pytest.mark.parametrize(
    "text", ["naïve", "100 %", "%41", "tab\tand\nline", "漢字 🙂", "plain ~!\"#$&'()*+,-./:;<=>?@"]
)
def test_a_status_message_is_percent_encoded(peer: Peer, text: str) -> None:
    sent = peer.call(FAIL, text.encode(), extra=[("fail-code", "5")]).trailers["grpc-message"]
    assert all(0x20 <= ord(char) <= 0x7E for char in sent)
    assert unquote(sent) == text
    if text.startswith("plain"):
        assert sent == text, "encoded without need"


@pytest.mark.parametrize("piece", ["a", "é", "漢", "🙂"])
def test_a_long_status_message_is_clipped_so_that_clients_take_the_trailers(
    peer: Peer, piece: str
) -> None:
    """Of 8 KiB they all do; a path that nobody knows is quoted."""
    long = piece * (9_000 // len(piece.encode()))
    for status in (
        peer.call(FAIL, long.encode(), extra=[("fail-code", "5")]),
        peer.call(f"/{long}", b"body"),
    ):
        sent = status.trailers["grpc-message"]
        assert len(sent) <= 6 * 1_024 + 16
        text = unquote(sent)
        assert text.endswith(piece + "...")
        assert "\N{REPLACEMENT CHARACTER}" not in text
    peer.echo()


def test_binary_trailers_are_sent_without_padding(peer: Peer) -> None:
    """ "Should", in the document."""
    trailers = peer.call(FAIL, b"", extra=[("fail-code", "5")]).trailers
    assert not trailers["fail-note-bin"].endswith("=")


def test_a_stream_answers_before_the_request_ends(peer: Peer) -> None:
    stream = peer.open(STREAM, b"one")
    peer.read_until(lambda: peer.answers[stream].data)
    peer.data(stream, message(b"two"))
    peer.read_until(lambda: len(peer.answers[stream].data) > 8)
    peer.data(stream, b"", end=True)
    assert peer.answer(stream).messages == [b"one", b"two"]


# -- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc+other"])
def test_content_types_of_grpc_are_served(peer: Peer, content_type: str) -> None:
    assert taken(peer, request(content_type=content_type)).body == b"body"


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "application/grp", ""])
def test_another_content_type_is_answered_with_415(peer: Peer, content_type: str) -> None:
    answer = taken(peer, request(content_type=content_type))
    assert answer.headers[":status"] == "415"
    peer.echo()


def test_no_content_type_is_refused(peer: Peer) -> None:
    assert taken(peer, request(without=["content-type"])).refused
    peer.echo()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "post", "CONNECT"])
def test_methods_but_post_are_refused(peer: Peer, method: str) -> None:
    answer = taken(peer, request(method=method))
    assert answer.refused
    assert method != "HEAD" or not answer.data, "HEAD is answered without content (RFC 9110, 9.3.2)"
    peer.echo()


def test_blanks_around_a_value_are_stripped(peer: Peer) -> None:
    """HTTP/2 forbids them (8.2.1), grpc's clients send them, and gRPC lets a server strip them."""
    answer = taken(peer, request(METADATA, ("x-value", " both ")))
    assert ["x-value", "both"] in json.loads(answer.body)


def test_te_may_be_asked_for(peer: Peer) -> None:
    """It detects proxies that lose trailers: whoever lacks it may be served or refused."""
    answer = taken(peer, request(without=["te"]))
    assert answer.refused or answer.body == b"body"
    peer.echo()


def test_authority_may_be_left_out_and_scheme_be_another(peer: Peer) -> None:
    assert taken(peer, request(without=[":authority"])).body == b"body"
    answer = taken(peer, request(scheme="https"))
    assert answer.refused or answer.body == b"body"


@pytest.mark.parametrize(
    "fields",
    [
        request(without=[":method"]),
        request(without=[":path"]),
        request(without=[":scheme"]),
        request(UNARY, (":path", LARGE)),
        [(":path", LARGE), *request()],
        [*request(without=[":path"]), (":path", UNARY)],
        [(":status", "200"), *request()],
        [(":other", "x"), *request()],
        request(UNARY, ("X-Upper", "x")),
        request(UNARY, ("x name", "x")),
        request(UNARY, ("", "x")),
        request(UNARY, ("x-value", "a\0b")),
        request(UNARY, ("x-value", "a\r\nx-b: c")),
        request(UNARY, ("connection", "keep-alive")),
        request(UNARY, ("transfer-encoding", "chunked")),
        request(UNARY, ("keep-alive", "1")),
        request(UNARY, ("proxy-connection", "keep-alive")),
        request(UNARY, ("upgrade", "websocket")),
        request(te="gzip"),
    ],
    ids=[
        *("no-method", "no-path", "no-scheme", "second-path-behind", "second-path", "late-path"),
        *("status", "unknown-pseudo", "upper-case", "space-in-name", "no-name", "nul", "newline"),
        *("connection", "transfer-encoding", "keep-alive"),
        *("proxy-connection", "upgrade", "te-other"),
    ],
)
def test_8_2_and_8_3_malformed_requests_are_refused(
    peer: Peer, bystander: Peer, fields: Fields
) -> None:
    """RFC 9113: an error of the stream, maybe after an answer with an HTTP status of 4xx."""
    stream = peer.new_stream()
    peer.send(header_frames(stream, literals(fields)))
    peer.data(stream, message(b"body"), end=True)
    peer.read_until(lambda: peer.answers[stream].over)
    answer = peer.answers[stream]
    assert answer.reset == PROTOCOL_ERROR or answer.refused
    assert not answer.data
    peer.echo()


@pytest.mark.parametrize(("told", "good"), [("9", True), ("8", False), ("10", False), ("x", False)])
def test_8_1_1_content_length_must_be_that_of_the_data(peer: Peer, told: str, good: bool) -> None:
    answer = taken(peer, request(UNARY, ("content-length", told)))
    if good:
        assert answer.body == b"body"
    else:
        assert answer.refused
    peer.echo()


# -- deadlines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("1H", 3_600),
        ("90M", 5_400),
        ("99S", 99),
        ("99999m", 99.999),
        ("99999999u", 99.999999),
        ("99999999H", 99_999_999 * 3_600),
        ("00000100S", 100),
    ],
)
def test_grpc_timeout_has_units(peer: Peer, timeout: str, seconds: float) -> None:
    answer = peer.call(REMAINING, b"", extra=[("grpc-timeout", timeout)])
    if answer.body == b"none":  # more than a server can count is no deadline
        assert seconds > 1e9
    else:
        assert seconds - 60 < float(answer.body) <= seconds + 0.001


def test_without_grpc_timeout_there_is_no_deadline(peer: Peer) -> None:
    assert peer.call(REMAINING, b"").body == b"none"


@pytest.mark.parametrize(
    "timeout",
    [
        "",
        "1",
        "S",
        "1s",
        "-1S",
        "+1S",
        "1.5S",
        "123456789S",
        "1 S",
        "1SS",
        "H1",
        "\N{ARABIC-INDIC DIGIT ONE}S",
    ],
)
def test_a_grpc_timeout_that_is_none_is_refused_or_ignored(peer: Peer, timeout: str) -> None:
    answer = taken(peer, request(UNARY, ("grpc-timeout", timeout)))
    assert answer.refused or answer.body == b"body"
    peer.echo()


@pytest.mark.parametrize("timeout", ["20m", "20000u", "20000000n", "1n", "0S"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_deadline_that_passes_ends_the_call(
    peer: Peer, bystander: Peer, timeout: str, ended: bool
) -> None:
    name = f"{timeout} {ended}".encode()
    stream = peer.begin(request(HOLD, ("grpc-timeout", timeout)))
    peer.data(stream, message(name), end=ended)
    answer = peer.answer(stream)
    assert answer.reset == CANCEL or answer.status == DEADLINE_EXCEEDED
    if timeout.startswith("20") and ended:
        assert bystander.call("/test.Echo/Cancelled", name).body == name
    peer.echo()


def test_a_deadline_passes_while_a_stream_waits_for_its_caller(peer: Peer) -> None:
    stream = peer.begin(request(STREAM, ("grpc-timeout", "50m")))
    peer.data(stream, message(b"one"))
    answer = peer.answer(stream)
    assert answer.reset == CANCEL or answer.status == DEADLINE_EXCEEDED
    peer.echo()


# -- metadata ------------------------------------------------------------------------------------


def metadata(peer: Peer, *sent: tuple[str, str]) -> list[tuple[str, str]]:
    """What the service sees of this metadata; binary values as base64."""
    answer = peer.call(METADATA, b"", extra=sent)
    return [(name, value) for name, value in json.loads(answer.body) if name.startswith("x-")]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_ascii_metadata_arrives_as_it_was_sent_and_in_order(peer: Peer) -> None:
    sent = [
        ("x-a", "1"),
        ("x-b", 'spaces inside, commas, "quotes" and ~'),
        ("x-a", "2"),
        ("x-_.-9", "odd name"),
        ("x-a", "1"),
    ]
    came = metadata(peer, *sent)
    assert sorted(came) == sorted(sent)
    assert [value for name, value in came if name == "x-a"] == ["1", "2", "1"]


@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("padding", [True, False])
def test_binary_metadata_is_decoded_with_padding_and_without(
    peer: Peer, size: int, padding: bool
) -> None:
    data = b"\xff\xfe\0\x01"[:size]
    sent = encoded(data) if padding else encoded(data).rstrip("=")
    assert metadata(peer, ("x-data-bin", sent)) == [("x-data-bin", encoded(data))]


def test_joined_binary_metadata_is_split_before_it_is_decoded(peer: Peer) -> None:
    sent = f"{encoded(b'a')},{encoded(b'bc')}, {encoded(b'def')},{encoded(b'g').rstrip('=')}"
    came = metadata(peer, ("x-data-bin", sent))
    assert came == [("x-data-bin", encoded(data)) for data in (b"a", b"bc", b"def", b"g")]


@pytest.mark.parametrize("value", ["!!!!", "A", "AAAAA", "AA=A", "===="])
def test_binary_metadata_that_is_no_base64_is_refused_or_left_out(peer: Peer, value: str) -> None:
    answer = taken(peer, request(METADATA, ("x-data-bin", value)), b"")
    assert answer.refused or not [
        name for name, found in json.loads(answer.body) if name == "x-data-bin" and found == value
    ]
    peer.echo()


def test_values_of_one_call_never_reach_another(peer: Peer) -> None:
    streams = {}
    for number in range(40):
        fields = request(METADATA, ("x-n", f"{number}"), ("x-n-bin", encoded(b"%d" % number)))
        streams[number] = peer.begin(fields)
    for stream in streams.values():
        peer.data(stream, message(b""), end=True)
    for number, stream in streams.items():
        came = dict(json.loads(peer.answer(stream).body))
        assert (came["x-n"], came["x-n-bin"]) == (f"{number}", encoded(b"%d" % number))


def test_user_agent_and_accept_encoding_do_not_disturb(peer: Peer) -> None:
    extra = [("user-agent", "peer/1"), ("grpc-accept-encoding", "zstd, gzip"), ("x-ok", "1")]
    assert metadata(peer, *extra) == [("x-ok", "1")]


def test_answers_of_any_size_are_whole(peer: Peer) -> None:
    for size in (0, 1, 16_378, 16_379, 16_380, 65_530, 65_531, 1_000_000):
        assert peer.call(LARGE, b"%d" % size).body == pattern(size)

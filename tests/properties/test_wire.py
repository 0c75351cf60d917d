"""Valid frames that were changed, cut, left out or put into another order, over a real socket.

Whatever comes of them, a call is never answered with another one's bytes, and a well-behaved
connection beside it is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wire.echo_process import EchoProcess
from wire.peer import (
    DATA,
    END_STREAM,
    STREAM,
    UNARY,
    Closed,
    Peer,
    frame,
    header_frames,
    literals,
    message,
    ping,
    priority_fields,
    request,
    rst_stream,
    window_update,
)
from wire.peer import settings as settings_frame

Draw = Callable[[st.SearchStrategy[Any]], Any]


@pytest.fixture(scope="module")
def server() -> Iterator[EchoProcess]:
    with EchoProcess() as started:
        yield started


def body_of(stream: int) -> bytes:
    """What a call sends, and nobody else does."""
    return b"<%08d>" % stream


@st.composite
def sequences(draw: Draw) -> list[bytes]:
    """The frames of some calls, mixed, and up to five things done to them."""
    calls = []
    for stream in range(1, 2 * draw(st.integers(1, 5)), 2):
        block = literals(request(draw(st.sampled_from((UNARY, STREAM)))))
        whole, cut = message(body_of(stream)), draw(st.integers(0, 15))
        sizes = draw(st.sampled_from(((), (5,), (0, 20))))
        calls.append(
            [
                header_frames(stream, block, sizes=sizes),
                frame(DATA, 0, stream, whole[:cut]),
                frame(DATA, END_STREAM, stream, whole[cut:]),
            ]
        )
    frames = [said for stage in zip(*calls, strict=True) for said in stage]
    for _ in range(draw(st.integers(0, 5))):
        if frames:
            draw(st.sampled_from((_flip, _cut, _drop, _double, _swap, _insert)))(draw, frames)
    return frames


def _place(draw: Draw, frames: list[bytes]) -> int:
    return int(draw(st.integers(0, len(frames) - 1)))


def _flip(draw: Draw, frames: list[bytes]) -> None:
    """A bit of a frame's head or payload, but none of what bodies are told apart by."""
    at = _place(draw, frames)
    changed = bytearray(frames[at])
    bit = draw(st.integers(0, 8 * min(len(changed), 14) - 1))
    if changed:
        changed[bit // 8] ^= 1 << bit % 8
        # A call whose number changed would say another one's body.
        if not 5 <= bit // 8 < 9:
            frames[at] = bytes(changed)


def _cut(draw: Draw, frames: list[bytes]) -> None:
    at = _place(draw, frames)
    frames[at] = frames[at][: draw(st.integers(1, max(1, len(frames[at]) - 1)))]


def _drop(draw: Draw, frames: list[bytes]) -> None:
    del frames[_place(draw, frames)]


def _double(draw: Draw, frames: list[bytes]) -> None:
    at = _place(draw, frames)
    frames.insert(at, frames[at])


def _swap(draw: Draw, frames: list[bytes]) -> None:
    one, other = _place(draw, frames), _place(draw, frames)
    frames[one], frames[other] = frames[other], frames[one]


def _insert(draw: Draw, frames: list[bytes]) -> None:
    stream = draw(st.integers(0, 12))
    odd = (
        rst_stream(stream),
        window_update(stream, draw(st.sampled_from((0, 1, 2**31 - 1)))),
        frame(0x2, 0, stream, priority_fields(draw(st.integers(0, 12)))),
        ping(b"inserted"),
        settings_frame({draw(st.integers(1, 6)): draw(st.sampled_from((0, 1, 20_000, 2**31)))}),
        frame(draw(st.integers(0, 12)), draw(st.integers(0, 255)), stream, b"\0\0\0\1\0"),
    )
    frames.insert(_place(draw, frames), draw(st.sampled_from(odd)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(sequences(), st.booleans())
def test_changed_frames_mix_up_no_calls_and_disturb_nobody(
    server: EchoProcess, frames: list[bytes], together: bool
) -> None:
    with Peer(server.address) as beside, Peer(server.address) as peer:
        peer.socket.settimeout(0.05)  # most sequences leave something open: nothing more comes
        with suppress(Closed, TimeoutError):
            if together:
                peer.send(*frames)
            else:
                for said in frames:
                    peer.send(said)
            beside.echo(b"beside")
            while True:
                peer.read()
        beside.echo(b"after")
    for stream, answer in peer.answers.items():
        others = [n for n in range(1, 13, 2) if n != stream]
        assert not any(body_of(other) in answer.data for other in others)

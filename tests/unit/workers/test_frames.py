"""Frames survive any cut, and what is no frame is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers import frames
from headrace_server.workers.frames import FrameError, FrameSplitter, RowParameters

SPEC = ModelSpec(
    "model",
    3,
    "pytorch_exported",
    16,
    (TensorSpec("ids", "INT64", [-1], pad=0), TensorSpec("scale", "FP32", [1], optional=True)),
    (TensorSpec("text", "BYTES", [2]),),
)
PLACES = (
    frames.TensorPlace(0, 0, 24, (1, 3)),
    frames.TensorPlace(1, 64, 9, (2, 1), (0, 4, 9)),
)
FROM_WORKER: list[frames.FromWorker] = [
    frames.Hello(4711, "2.9.0", 2),
    frames.Progress("warming_up", "batch 3 of 8"),
    frames.Progress("loading"),
    frames.Loaded(SPEC, ((1, 0, 0.25), (8, 128, 1.5))),
    frames.LoadFailed("no such file: modèle"),
    frames.Slab(1, 1 << 40),
    frames.BatchDone(2**40, 1, PLACES, 1, 2, 3),
    frames.BatchError(7, "ValueError: x"),
]
VALUES: dict[str, bool | int | float | str] = {"a": True, "b": -1, "c": 0.5, "d": "é"}
TO_WORKER: list[frames.ToWorker] = [
    frames.Slab(0, 65_536),
    frames.RunBatch(7, 0, PLACES),
    frames.RunBatch(8, 1, (), (RowParameters(1, VALUES), RowParameters(3, {}))),
    frames.Stop(),
]


def bodies(data: bytes) -> list[bytes]:
    return list(FrameSplitter().feed(data))


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda m: type(m).__name__)
def test_what_a_worker_sends_arrives(message: frames.FromWorker) -> None:
    (body,) = bodies(frames.encode(message))
    assert frames.decode_from_worker(body) == message


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda m: type(m).__name__)
def test_what_the_front_sends_arrives(message: frames.ToWorker) -> None:
    (body,) = bodies(frames.encode(message))
    assert frames.decode_to_worker(body) == message


@given(st.data())
def test_frames_arrive_whole_however_the_stream_is_cut(data: st.DataObject) -> None:
    messages = data.draw(st.lists(st.sampled_from(FROM_WORKER), max_size=6))
    stream = b"".join(frames.encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    splitter = FrameSplitter()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += [frames.decode_from_worker(b) for b in splitter.feed(stream[start:end])]
    assert received == messages


def test_a_stream_of_single_bytes_is_enough() -> None:
    splitter = FrameSplitter()
    stream = frames.encode(frames.Stop()) * 2
    received = [body for byte in stream for body in splitter.feed(bytes([byte]))]
    assert [frames.decode_to_worker(body) for body in received] == [frames.Stop()] * 2


def test_an_absurd_length_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(FrameError, match=f"at most {frames.MAX_FRAME_BYTES} expected"):
        bodies(struct.pack("<I", frames.MAX_FRAME_BYTES + 1))


def test_what_came_before_it_counts() -> None:
    received = FrameSplitter().feed(frames.encode(frames.Stop()) + b"\xff" * 64)
    assert frames.decode_to_worker(next(received)) == frames.Stop()
    with pytest.raises(FrameError):
        next(received)


def test_the_largest_length_is_waited_for() -> None:
    assert bodies(struct.pack("<I", frames.MAX_FRAME_BYTES)) == []


def test_a_frame_that_the_peer_would_refuse_is_not_made() -> None:
    frames.encode(frames.BatchError(1, "x" * (frames.MAX_FRAME_BYTES - 100)))
    with pytest.raises(FrameError, match=f"at most {frames.MAX_FRAME_BYTES} can be sent"):
        frames.encode(frames.BatchError(1, "x" * frames.MAX_FRAME_BYTES))


@given(st.binary(max_size=200))
def test_junk_is_refused_and_nothing_else_happens(junk: bytes) -> None:
    for decode in (frames.decode_from_worker, frames.decode_to_worker):
        try:
            decode(junk)
        except FrameError:
            continue


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x93\xa5Hello\x01", b"\x91\xa6Nobody", b"\x94\xa5Hello\xa1x\xa1y\x00"],
    ids=["empty", "not-msgpack", "truncated", "unknown", "wrong-type"],
)
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    with pytest.raises(FrameError, match="not one of ours"):
        frames.decode_from_worker(body)
    with pytest.raises(FrameError, match="not one of ours"):
        frames.decode_to_worker(body)


def test_a_spec_that_cannot_be_is_refused() -> None:
    (body,) = bodies(frames.encode(frames.Loaded(SPEC)))
    with pytest.raises(FrameError, match="FP33"):
        frames.decode_from_worker(body.replace(b"FP32", b"FP33"))


def test_neither_side_takes_the_other_sides_messages() -> None:
    (body,) = bodies(frames.encode(frames.Stop()))
    with pytest.raises(FrameError, match="a worker sent"):
        frames.decode_from_worker(body)
    (body,) = bodies(frames.encode(FROM_WORKER[0]))
    with pytest.raises(FrameError, match="the server sent"):
        frames.decode_to_worker(body)

"""What crosses between a front and the engine comes out as it went in."""

from __future__ import annotations

import pytest

from headrace_server.core.errors import Reason, ServingError
from headrace_server.fronts import frames
from headrace_server.transport.status import public_text, retry_after_s


@pytest.mark.parametrize("reason", Reason)
def test_every_error_says_the_same_on_the_other_side(reason: Reason) -> None:
    error = ServingError(
        reason,
        model="m",
        why="because",
        expected=[-1, 3],
        got=7,
        problem=KeyError("k"),
        retry_after_s=1.25,
    )
    error.counted = True
    sent = frames.encoder.encode((5, [frames.refusal(3, error)]))
    bundle = frames.read_to_front(sent)
    (message,) = bundle.messages
    assert bundle.seen == 5
    assert isinstance(message, frames.Refused)
    assert message.id == 3
    received = frames.error_of(message)
    assert received.reason is reason
    assert received.counted
    assert public_text(received) == public_text(error)
    assert retry_after_s(received) == retry_after_s(error)


@pytest.mark.parametrize("contents", [b"", b"here", (4096, 17), None])
def test_contents_are_here_or_in_memory_or_nowhere(contents: frames.Contents) -> None:
    call = frames.Submit(
        *(1, 2, 3, (contents,), ((3, -1), None), {"a": 1, "b": 1.0, "c": True, "d": "x"}),
        *(12, 5.5, 0, None, 0.25, (1, 0), "tenant", 2.0),
    )
    answer = frames.Answered(1, (frames.Output((3,), contents),), 4, 0.5, 1, 2, 3)
    (there,) = frames.read_from_front(frames.encoder.encode((0, [call]))).messages
    (back,) = frames.read_to_front(frames.encoder.encode((0, [answer]))).messages
    assert (there, back) == (call, answer)

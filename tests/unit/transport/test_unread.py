"""Who gets how much of what may wait to be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.core.errors import Reason, ServingError
from headrace_server.transport.unread import UnreadAnswers


def fill(unread: UnreadAnswers, peer: str, nbytes: int = 10) -> int:
    """Hand one peer answers until one is refused; returns the bytes that it holds."""
    held = 0
    while unread.hold(peer, nbytes):
        held += nbytes
    return held


def test_a_lone_connection_gets_half() -> None:
    unread = UnreadAnswers(1_000)
    assert fill(unread, "one") == 510
    with pytest.raises(ServingError) as refused:
        unread.check("one")
    assert refused.value.reason is Reason.ANSWERS_UNREAD
    assert refused.value.details == {"unread": 510}


def test_whoever_reads_nothing_leaves_room_for_the_others() -> None:
    unread = UnreadAnswers(1_000)
    held = [fill(unread, f"peer {i}") for i in range(5)]
    assert all(share >= 10 for share in held)
    unread.check("somebody else")
    assert unread.hold("somebody else", 900)


def test_what_was_read_makes_room_again() -> None:
    unread = UnreadAnswers(1_000)
    fill(unread, "one")
    unread.release("one", 510)
    unread.check("one")
    assert unread.nbytes == 0
    assert not unread.scarce


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100)), max_size=200))
def test_the_sum_stays_within_the_bound_and_the_last_answer(
    answers: list[tuple[int, int]],
) -> None:
    unread = UnreadAnswers(500)
    for peer, nbytes in answers:
        unread.hold(str(peer), nbytes)
        # Whoever had nothing yet is given one answer, whatever there is already.
        assert unread.nbytes < 500 + 6 * 100

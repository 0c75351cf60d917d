"""Blocks of shared memory: apart from each other, used again, joined where something is larger."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.fronts.arena import SMALLEST_ORDER, Arena

NBYTES = 1 << 16
SMALLEST = 1 << SMALLEST_ORDER


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20_000))))
def test_blocks_never_overlap_and_nothing_is_lost(steps: list[tuple[bool, int]]) -> None:
    arena = Arena(NBYTES)
    taken: dict[int, int] = {}
    for takes, number in steps:
        if takes:
            offset = arena.take(number)
            if offset is None:
                continue
            assert offset + number <= NBYTES
            assert all(offset >= o + n or o >= offset + number for o, n in taken.items())
            taken[offset] = number
        elif taken:
            offset = [*taken][number % len(taken)]
            del taken[offset]
            arena.give_back(offset)
        assert arena.blocks == len(taken)
    for offset in taken:
        arena.give_back(offset)
    assert arena.take(NBYTES) == 0


def test_the_youngest_block_is_used_again_first() -> None:
    arena = Arena(NBYTES)
    first, second = arena.take(3_000), arena.take(3_000)
    assert first is not None
    assert second is not None
    arena.give_back(first)
    arena.give_back(second)
    assert arena.take(4_000) == second
    assert arena.take(4_000) == first


def test_what_is_full_or_too_small_says_so() -> None:
    arena = Arena(NBYTES)
    assert arena.take(NBYTES + 1) is None
    offsets = [arena.take(1) for _ in range(NBYTES // SMALLEST)]
    assert None not in offsets
    assert arena.take(1) is None
    assert arena.take(NBYTES) is None


@pytest.mark.parametrize("nbytes", [0, 512, 3_000])
def test_memory_of_another_size_is_refused(nbytes: int) -> None:
    with pytest.raises(ValueError, match="expected a power of two"):
        Arena(nbytes)

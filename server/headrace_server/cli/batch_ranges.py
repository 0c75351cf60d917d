"""Batches grouped by rows, from one power of two to the next, as tables and pictures show them."""

from __future__ import annotations

from collections.abc import Mapping


def by_range(batches: Mapping[int, int]) -> list[tuple[str, int]]:
    """The ranges `1`, `2`, `3-4`, `5-8` and so on, up to that of the largest batch, each with the
    number of its batches.

    Args:
        batches: how many there were of each number of rows; not empty.
    """
    counts: dict[int, int] = {}
    for rows, count in batches.items():
        exponent = (rows - 1).bit_length()
        counts[exponent] = counts.get(exponent, 0) + count
    return [(_name(exponent), counts.get(exponent, 0)) for exponent in range(max(counts) + 1)]


def _name(exponent: int) -> str:
    most = 1 << exponent
    least = most // 2 + 1
    return str(most) if least >= most else f"{least}-{most}"

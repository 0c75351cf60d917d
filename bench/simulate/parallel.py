"""Runs that do not depend on each other, on several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    look: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[Result]:
    """`look` at each item, on so many processes of low priority; results in the order of items."""
    if min(processes, len(items)) <= 1:
        yield from map(look, items)
        return
    # Spawned, not forked: the same on every platform, and nothing inherited by chance.
    with get_context("spawn").Pool(processes, initializer=os.nice, initargs=(10,)) as pool:
        yield from pool.imap(look, items)

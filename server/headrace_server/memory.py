"""Tends the memory of a process that serves: which objects are collected, what is given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc

EVERY_S = 10.0
"""glibc keeps what large messages took: 780 MB after 600 answers of 1 MB were dropped. Forbidding
it to (a fixed `M_MMAP_THRESHOLD`) takes fresh pages for each message instead, and half as much CPU
again for an image of 600 kB. To look every few seconds costs next to nothing."""


async def give_back_freed() -> None:
    """Do so from time to time, for ever; ends at once where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(EVERY_S)
        # In a thread: there may be a gigabyte to give back, and calls wait for this loop.
        await asyncio.to_thread(trim, 0)


GC_THRESHOLDS = (20_000, 20, 20)
"""Requests make short-lived objects by the hundred; reference counts free nearly all of them, and
looking for cycles every 700 allocations, as Python does by default, shows in the profile."""


def settle_objects() -> None:
    """What lives now lives as long as the server: collecting it over and over is waste."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

"""Tends the memory of a process that serves: which objects are collected, what is given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc

EVERY_S = 2.0
"""To look that often costs nothing that can be measured, also where messages are large (576 KiB:
2.6 ms of CPU each, 2.5 when looking every 10 s, spread 0.7), and less is given back at a time."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
"""Of glibc's `malloc.h`."""


def keep_one_heap() -> None:
    """Have all threads that are still to come share one heap, which only `give_back_freed` makes
    smaller. Nothing happens where the C library is not glibc.

    Left alone, glibc 2.36 gives each thread a heap of its own, and neither `free` nor `malloc_trim`
    gives back what is free at the end of any but the first: up to 8 MiB each here, up to 64 where
    messages are larger. gRPC's threads come and go, and filled one after the other up to that: 24
    MiB in three minutes of kills and reloads, with 13 MiB in use all the time.

    It also gives memory back with every large message, to take fresh pages for the next one. To
    leave that to one place, and messages of up to 32 MiB in the heap, saves a quarter of the CPU
    that 576 KiB cost (2.5 ms for 3.5; for 64 KiB and less it is the same).
    """
    _of_glibc("mallopt", _M_ARENA_MAX, 1)
    _of_glibc("mallopt", _M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    _of_glibc("mallopt", _M_TRIM_THRESHOLD, 1 << 30)


def keep_what_is_freed() -> None:
    """Have everything that is freed stay in this process until `give_back` is called, for whatever
    is allocated next. Nothing happens where the C library is not glibc.

    Left alone, glibc maps what is larger than 32 MiB anew each time and gives it back when it is
    freed, and of the rest what lies at the end of the heap. A batch of 16 images in ResNet-18 took
    50,000 pages so, which the system has to clear first: 788 ms, and 690 without; 8 images take
    4 % less, 4 images 2 %, one as long as before (14 rounds in turn, +- 3 %).

    What a model keeps of its first batch of each size (kernels of oneDNN, 600 to 1,400 KiB) divides
    what is free: one image then goes through up to 40 MiB besides the weights, in place of 15, and
    takes up to 3 % longer. To let what is large in those batches lie in mappings of its own avoids
    that, but each of them takes 1.75 times as long, and the next one a tenth longer.
    """
    _of_glibc("mallopt", _M_ARENA_MAX, 1)  # others would hold no more than 64 MiB each
    _of_glibc("mallopt", _M_MMAP_MAX, 0)
    _of_glibc("mallopt", _M_TRIM_THRESHOLD, -1)  # never


def give_back() -> bool:
    """Return to the system what is free; False where the C library is not glibc."""
    return _of_glibc("malloc_trim", 0)


async def give_back_freed() -> None:
    """Do so from time to time, for ever; ends where the C library is not glibc."""
    can = True
    while can:
        await asyncio.sleep(EVERY_S)
        # In a thread: there may be a gigabyte to give back, and calls wait for this loop.
        can = await asyncio.to_thread(give_back)


def _of_glibc(name: str, *arguments: int) -> bool:
    """Call this function of the C library; False where it has none of that name."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is None:
        return False
    function(*arguments)
    return True


GC_THRESHOLDS = (20_000, 20, 20)
"""Requests make short-lived objects by the hundred; reference counts free nearly all of them, and
looking for cycles every 700 allocations, as Python does by default, shows in the profile."""


def settle_objects() -> None:
    """What lives now lives as long as the server: collecting it over and over is waste."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

"""Shared memory that one process writes and another reads, with no name and nothing to clean up.

A slab is an anonymous file whose descriptor is sent to the reader: when the last process that has
it ends, however it ends, the memory is gone. The writer owns it and grows it; the reader maps what
it is given.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Protocol

ALIGNMENT = 64
"""Tensors begin at multiples of this: a cache line, and enough for every vector instruction."""

MIN_BYTES = 1 << 16

KEPT_BYTES = 16 << 20
"""Slabs up to this size never shrink: a batch of images, for the asking."""

REVIEW_EVERY = 64
"""Batches after which a larger slab is looked at: if none of them took a quarter of it, it shrinks
to what they took. One huge request must not hold memory for good, and asking more often would
make a load that varies pay for new pages again and again."""


def aligned(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Pins(Protocol):
    """Locks what is mapped into memory, for a device that reads and writes it by itself."""

    def pin(self, memory: memoryview) -> None:
        """It was just mapped."""
        ...

    def unpin(self, memory: memoryview) -> None:
        """It is about to be unmapped."""
        ...


class WritableSlab:
    """The writer's end. Starts without memory; `reserve` gets, grows or shrinks it."""

    def __init__(self, pins: Pins | None = None) -> None:
        self._pins = pins
        self._map: mmap.mmap | None = None
        self.nbytes = 0
        self.view = memoryview(b"")
        self._reservations = self._peak = 0

    def reserve(self, nbytes: int) -> int | None:
        """Make room for `nbytes`.

        Returns the descriptor of new memory, which the caller sends to the reader and closes, or
        None when the present memory is kept. The old contents are not.
        """
        self._reservations += 1
        self._peak = max(self._peak, nbytes)
        if nbytes <= self.nbytes and not self._too_large():
            return None
        # A power of two, so that few sizes follow each other; pages that nobody touches are none.
        size = max(MIN_BYTES, 1 << (self._peak - 1).bit_length())
        self._reservations = self._peak = 0
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, size)
            mapped = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self.close()
        self._map, self.nbytes, self.view = mapped, size, memoryview(mapped)
        if self._pins is not None:
            self._pins.pin(self.view)
        return descriptor

    def _too_large(self) -> bool:
        if self._reservations < REVIEW_EVERY:
            return False
        if self.nbytes > KEPT_BYTES and 4 * self._peak <= self.nbytes:
            return True
        self._reservations = self._peak = 0
        return False

    def close(self) -> None:
        """Give the memory back (the reader keeps its own mapping)."""
        if self._map is not None and self._pins is not None:
            self._pins.unpin(self.view)
        _unmap(self._map, self.view)
        self._map, self.nbytes, self.view = None, 0, memoryview(b"")


class ReadableSlab:
    """The reader's end: maps the descriptor it is given and closes it."""

    def __init__(self, descriptor: int, nbytes: int, pins: Pins | None = None) -> None:
        try:
            self._map = mmap.mmap(descriptor, nbytes)
        finally:
            os.close(descriptor)
        self.view = memoryview(self._map)
        self._pins = pins
        if pins is not None:
            pins.pin(self.view)

    def close(self) -> None:
        """Unmap, unless a tensor still looks at the memory: then it goes with that tensor."""
        if self._pins is not None:
            self._pins.unpin(self.view)
        _unmap(self._map, self.view)


def _unmap(mapped: mmap.mmap | None, view: memoryview) -> None:
    if mapped is None:
        return
    try:
        view.release()
        mapped.close()
    except BufferError:
        pass


def _anonymous_file() -> int:
    """A descriptor of memory that has no name; on systems without memfd, an unlinked file."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headrace-slab", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix="headrace-slab-") as file:
        return os.dup(file.fileno())

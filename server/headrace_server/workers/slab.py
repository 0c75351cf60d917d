"""Shared memory that one process writes and another reads, with no name and nothing to clean up.

A slab is an anonymous file whose descriptor is sent to the reader: when the last process that has
it ends, however it ends, the memory is gone. The writer owns it and grows it; the reader maps what
it is given.
"""

from __future__ import annotations

import mmap
import os
import tempfile

ALIGNMENT = 64
"""Tensors begin at multiples of this: a cache line, and enough for every vector instruction."""

MIN_BYTES = 1 << 16


def aligned(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class WritableSlab:
    """The writer's end. Starts without memory; `reserve` gets or grows it."""

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self.nbytes = 0
        self.view = memoryview(b"")

    def reserve(self, nbytes: int) -> int | None:
        """Make room for `nbytes`.

        Returns the descriptor of new memory, which the caller sends to the reader and closes, or
        None when the present memory is large enough. The old contents are not kept.
        """
        if nbytes <= self.nbytes:
            return None
        size = max(MIN_BYTES, 1 << (nbytes - 1).bit_length())
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, size)
            mapped = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self.close()
        self._map, self.nbytes, self.view = mapped, size, memoryview(mapped)
        return descriptor

    def close(self) -> None:
        """Give the memory back (the reader keeps its own mapping)."""
        _unmap(self._map, self.view)
        self._map, self.nbytes, self.view = None, 0, memoryview(b"")


class ReadableSlab:
    """The reader's end: maps the descriptor it is given and closes it."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        try:
            self._map = mmap.mmap(descriptor, nbytes)
        finally:
            os.close(descriptor)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmap, unless a tensor still looks at the memory: then it goes with that tensor."""
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

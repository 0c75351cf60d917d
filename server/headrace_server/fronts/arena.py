"""Deals out blocks of one piece of memory: a buddy allocator (Knowlton, 1965). Pure."""

from __future__ import annotations

SMALLEST_ORDER = 10
"""Blocks are of 1 KiB at least: what is smaller is cheaper to send than to place."""


class Arena:
    """Blocks are powers of two at multiples of their size, and are used again youngest first, so
    that a small load stays in the processor's cache. Free halves are joined only once something
    does not fit: most loads want the same sizes over and over.

    Args:
        nbytes: of the memory; a power of two.
    """

    def __init__(self, nbytes: int) -> None:
        if nbytes & (nbytes - 1) or nbytes < 1 << SMALLEST_ORDER:
            raise ValueError(f"expected a power of two from 1024 on, got {nbytes}")
        self._largest = nbytes.bit_length() - 1
        self._free: dict[int, dict[int, None]] = {
            order: {} for order in range(SMALLEST_ORDER, self._largest + 1)
        }
        self._free[self._largest][0] = None
        self._orders: dict[int, int] = {}

    @property
    def blocks(self) -> int:
        """How many are taken."""
        return len(self._orders)

    def take(self, nbytes: int) -> int | None:
        """The offset of a block of so many bytes or more; None if there is none."""
        order = max(SMALLEST_ORDER, (nbytes - 1).bit_length())
        if order > self._largest:
            return None
        offset = self._split(order)
        if offset is None:
            self._join()
            offset = self._split(order)
        if offset is not None:
            self._orders[offset] = order
        return offset

    def give_back(self, offset: int) -> None:
        """The block at this offset is free again. Raises KeyError for what is none."""
        self._free[self._orders.pop(offset)][offset] = None

    def _split(self, order: int) -> int | None:
        for larger in range(order, self._largest + 1):
            if self._free[larger]:
                offset, _ = self._free[larger].popitem()
                for half in range(larger - 1, order - 1, -1):
                    self._free[half][offset + (1 << half)] = None
                return offset
        return None

    def _join(self) -> None:
        for order in range(SMALLEST_ORDER, self._largest):
            free = self._free[order]
            for offset in [*free]:
                buddy = offset ^ (1 << order)
                if offset in free and buddy in free:
                    del free[offset], free[buddy]
                    self._free[order + 1][min(offset, buddy)] = None

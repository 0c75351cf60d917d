"""Room for large messages that are on their way in, shared by the streams of a connection.

Flow control alone bounds what streams hold by their number times their window, so that windows have
to be small and large messages wait for more of them. Here a message that its stream's window does
not take asks for room for the whole of itself. Room is given in the order in which it was asked
for; who has none waits with its window's worth, so nobody waits for somebody who waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

ROOM_BYTES = 64 << 20
"""Of one connection. One message always has room, whatever its size."""


class Reservations:
    """The room of one connection."""

    def __init__(self, room: int = ROOM_BYTES) -> None:
        self._room = room
        self._taken = 0
        self._waiting: deque[tuple[object, int, Callable[[int], None]]] = deque()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._waiting)

    def ask(self, owner: object, nbytes: int, granted: Callable[[int], None]) -> None:
        """Call `granted` with the bytes as soon as there is room for them, which may be now."""
        self._waiting.append((owner, nbytes, granted))
        self._serve()

    def release(self, nbytes: int) -> None:
        """What was granted is free again."""
        self._taken -= nbytes
        self._serve()

    def forget(self, owner: object) -> None:
        """The owner waits for nothing any more."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not owner)
        self._serve()

    def _serve(self) -> None:
        waiting = self._waiting
        while waiting and (not self._taken or self._taken + waiting[0][1] <= self._room):
            _, nbytes, granted = waiting.popleft()
            self._taken += nbytes
            granted(nbytes)

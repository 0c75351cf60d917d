"""How much of what callers send and read the gateway holds at a time."""

from __future__ import annotations

from http import HTTPStatus

from headrace_server.gateway.errors import HttpError

RETRY_AFTER_S = 1.0


class Room:
    """Bytes of bodies in memory, of all calls together. One body more than fits is refused at once:
    nobody waits for others to read or write. A call that is alone may have more than there is.

    Args:
        nbytes: at a time.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.taken = 0


class Share:
    """What one call has of the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.nbytes = 0

    def take(self, nbytes: int) -> None:
        """Take so much more. Raises `HttpError`: there is not so much."""
        room = self._room
        if room.taken + nbytes > room.nbytes and room.taken > self.nbytes:
            raise HttpError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"expected room for {nbytes} bytes more, but the bodies of all calls have "
                f"{room.taken} of {room.nbytes}",
                retry_after_s=RETRY_AFTER_S,
            )
        room.taken += nbytes
        self.nbytes += nbytes

    def give_back(self) -> None:
        """Let others have all of it."""
        self._room.taken -= self.nbytes
        self.nbytes = 0

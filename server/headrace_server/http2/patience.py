"""How much of what costs the server and brings a peer nothing a connection puts up with.

Pings, settings, resets, priorities, empty frames and tiny windows are all legal, and each is cheap
to send: floods of them have taken servers down (CVE-2019-9511 to 9518, CVE-2023-44487). Here they
draw on one account that time and useful work fill up again.
"""

from __future__ import annotations

LARGEST = 20_000
"""Of them at once: as many as a client may have calls that it takes back together, and more."""

PER_S = 1_000.0
"""That are forgiven per second."""

PER_CALL = 16
"""That are forgiven for each stream that ends as it should: what it takes a client to say around it
that it has read, and how fast it could."""

PER_DATA = 4
"""And for each frame of data sent, which is acknowledged by one or two windows."""


class Patience:
    """The account of one connection."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = LARGEST
        """Whoever does useful work adds to it; it is brought back to `LARGEST` as time passes."""

    def spend(self, amount: int = 1) -> bool:
        """One more of them came; False if that was too much."""
        self.left -= amount
        return self.left >= 0

    def pass_time(self, seconds: float) -> None:
        """So much time has passed."""
        self.left = min(LARGEST, self.left + int(PER_S * seconds))

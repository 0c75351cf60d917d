"""Bounds the answers that callers were given and do not read, by connection and in sum."""

from __future__ import annotations

from collections import Counter
from functools import partial

from headrace_server.core.errors import Reason, ServingError
from headrace_server.rpc.call import Call

MAX_BYTES = 512 << 20
"""Of all connections together. Until an answer is read it is there as its bytes, once where it is
large and twice where it is not."""

COUNTED_FROM = 4_096
"""Bytes. Below that the call itself is most of what is held, and calls are limited one by one."""


class UnreadAnswers:
    """Counts answers from when they are handed to gRPC until their callers have taken them.

    A connection may have as many bytes unread as are left for all: a lone one half of `max_bytes`,
    one of n a share of `1 / (n + 1)`. So callers who never read leave room for the others, however
    many they are, and the sum stays below `max_bytes` (dynamic queue length thresholds: Choudhury
    and Hahne, 1998). Whoever has nothing unread is given an answer of any size.

    Args:
        max_bytes: of all answers together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._of: Counter[str] = Counter()
        self.nbytes = 0

    @property
    def scarce(self) -> bool:
        """Whether `check` could refuse anybody: no caller can have more than all have."""
        return 2 * self.nbytes > self._max_bytes

    def check(self, peer: str) -> None:
        """Refuse more work for a connection that does not read what it has. Raises `ServingError`:
        ANSWERS_UNREAD."""
        if self._exceeded(peer):
            raise self.refusal(peer)

    def refusal(self, peer: str) -> ServingError:
        """What a connection is told that has too much unread."""
        return ServingError(Reason.ANSWERS_UNREAD, unread=self._of[peer])

    def hold(self, peer: str, nbytes: int) -> bool:
        """An answer goes on its way; False if it shall not, for what was not read before it."""
        if self._exceeded(peer):
            return False
        self._of[peer] += nbytes
        self.nbytes += nbytes
        return True

    def release(self, peer: str, nbytes: int) -> None:
        """It was taken, or its caller is gone."""
        self._of[peer] -= nbytes
        self.nbytes -= nbytes
        if not self._of[peer]:
            del self._of[peer]

    def hold_for_call(self, call: Call, nbytes: int) -> bool:
        """Hold the one answer of a unary call until all of it has gone, or its caller has."""
        held = self.hold(call.peer(), nbytes)
        if held:
            call.add_done_callback(partial(self.release, call.peer(), nbytes))
        return held

    def _exceeded(self, peer: str) -> bool:
        return self.scarce and 0 < self._of[peer] > self._max_bytes - self.nbytes

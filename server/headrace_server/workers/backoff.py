"""When a lost worker is started again: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """At once after a first loss, then doubling from `initial_s` to `max_s`.

    A worker that was ready for `healthy_s` seconds before it was lost counts as a first loss.
    """

    initial_s: float = 0.25
    max_s: float = 30.0
    healthy_s: float = 30.0

    def delay_s(self, losses: int) -> float:
        """Seconds to wait before the next start after `losses` losses in a row, 1 or more."""
        if losses <= 1:
            return 0.0
        return float(min(self.max_s, self.initial_s * 2.0 ** min(losses - 2, 64)))

    def losses_after(self, losses: int, ready_for_s: float) -> int:
        """The count of losses in a row, once a worker was lost that had been ready this long."""
        return 1 if ready_for_s >= self.healthy_s else losses + 1

"""When a lost worker is started again: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """At once after a first loss, then doubling from `initial_s` to `max_s`.

    A worker counts as a first loss that was ready for as long as loading takes, which is at least
    `least_healthy_s` and at most `healthy_s`: then it is worth starting, and serves for half of the
    time or more. (Would it have to live for long, one that is killed from outside every 20 s, for
    lack of memory say, would soon be waiting more than serving.)
    """

    initial_s: float = 0.25
    max_s: float = 30.0
    least_healthy_s: float = 1.0
    healthy_s: float = 30.0

    def delay_s(self, losses: int) -> float:
        """Seconds to wait before the next start after `losses` losses in a row, 1 or more."""
        if losses <= 1:
            return 0.0
        return float(min(self.max_s, self.initial_s * 2.0 ** min(losses - 2, 64)))

    def losses_after(self, losses: int, ready_for_s: float, load_s: float) -> int:
        """The count of losses in a row, once a worker was lost that had been ready this long.

        `load_s`: what it takes to load the model.
        """
        needed_s = min(self.healthy_s, max(self.least_healthy_s, load_s))
        return 1 if ready_for_s >= needed_s else losses + 1

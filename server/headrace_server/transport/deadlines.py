"""How long a caller really waits, from what gRPC says is left of the deadline."""

from __future__ import annotations

ROUNDING = 0.01
"""gRPC sends a timeout with three digits at most and rounds up, so that what the server is told is
up to this share more than what the caller waits (101.0 s travel as 102, 1.001 s as 1.01)."""


def remaining_s(told_s: float | None) -> float | None:
    """Seconds until the caller gives up, at least, of those that `context.time_remaining()` tells.

    An answer that leaves within them is never late by the rounding of gRPC alone; None where there
    is no deadline.
    """
    return None if told_s is None else told_s * (1 - ROUNDING)

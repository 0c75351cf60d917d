"""What one measurement gives, whichever generator made it."""

from __future__ import annotations

from dataclasses import dataclass


class FailedRunError(Exception):
    """A load was not answered in full; nothing of it counts."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One load on one server.

    Attributes:
        per_s: answers per second.
        cpu_us: user and system time of all processes of the server, per answer.
        p50_ms, p99_ms: latency as the generator saw it.
        requests: answers that these figures come from.
    """

    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    requests: int

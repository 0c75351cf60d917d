"""What a run consists of: steps of load, how long each goes on, who sends which part. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from headrace_server.bench.arrivals import Arrivals

MAX_WINDOWS = 6
STABLE_WINDOWS = 3
"""A step ends when this many windows agree, and after `MAX_WINDOWS` whether they do or not."""


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`concurrency` callers, each of which sends its next request when the last is answered."""

    concurrency: int

    def __str__(self) -> str:
        return f"concurrency {self.concurrency}"

    def share(self, index: int, processes: int) -> ClosedLoop:
        """The callers of one of several processes; none where there are fewer than those."""
        return ClosedLoop(len(range(index, self.concurrency, processes)))


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests that are due when `arrivals` says, `rate` per second, answered or not."""

    rate: float
    arrivals: Arrivals

    def __str__(self) -> str:
        return f"rate {self.rate:g}"


Load: TypeAlias = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each step goes on.

    Attributes:
        warmup_s: seconds of load before anything is measured.
        duration_s: most seconds that are measured, in `MAX_WINDOWS` equal windows.
        tolerance: how far windows may lie apart and still agree, as a share of their mean.
    """

    warmup_s: float
    duration_s: float
    tolerance: float

    @property
    def window_s(self) -> float:
        """Seconds in a window."""
        return self.duration_s / MAX_WINDOWS

"""What the fleet tells a generator process, and what that reports.

All moments are of `time.monotonic`, which the processes of one machine share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.access import OPEN_ACCESS, Access
from headrace_server.bench.plan import Load
from headrace_server.bench.results import Seconds


@dataclass(frozen=True, slots=True)
class Setup:
    """Comes first, once: everything that stays the same. `requests` are serialised, and sent in
    turn; the process is number `index` of `processes`."""

    address: str
    transport: str
    timeout_s: float
    requests: Sequence[bytes]
    index: int
    processes: int
    seed: int
    access: Access = OPEN_ACCESS


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to `Setup`."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Send `load` (that of all processes together) from `begin_s` on; windows of `window_s`
    follow each other from `measure_s` on."""

    load: Load
    begin_s: float
    measure_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class WindowReport:
    """Latencies of the answers that came in one window; follows each window."""

    latencies_s: Seconds


@dataclass(frozen=True, slots=True)
class Stop:
    """End the step; what was due from `since_s` until before `until_s` is what counts.

    With `hold` the load goes on until everything that was under way is answered or has failed, so
    that the last requests meet the same server as the others.
    """

    since_s: float
    until_s: float
    hold: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """The answer to `Stop`.

    Attributes:
        latencies_s: of the requests that count and were answered.
        errors: requests that count and failed, by reason.
        lags_s: how late each request was that was sent in the time that counts; empty in a
            closed loop, where none is due.
        busy: share of the time in which the event loop had work.
    """

    latencies_s: Seconds
    errors: Mapping[str, int]
    lags_s: Seconds
    busy: float

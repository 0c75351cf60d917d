"""What was measured, and whether it holds still: windows, percentiles, server counts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.answers import ModelStatistics
from headrace_server.bench.plan import STABLE_WINDOWS, Load

Seconds = npt.NDArray[np.float32]

BUSY = 0.9
"""Share of its time from which a generator may be what limits the throughput."""

FEW_LATE = 2
"""So many late sends may be chance, however few there were in all."""

LATE_S = 0.001
LATE_SHARE = 0.1
"""Sends are late when the 99th percentile of their lag is more than both: a millisecond, which is
an event loop's ordinary jitter, and this share of the median latency, which it then distorts."""


@dataclass(frozen=True, slots=True)
class Window:
    """Answers that came within one window of a step; `p99_s` is NaN where none came."""

    throughput: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Distribution of latencies, in seconds; NaN where nothing was answered."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    p999_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class ServerWork:
    """What the model did during a step, for whomever, by its statistics.

    `mean_queue_s` and `mean_compute_s` are per request, NaN where none was answered; `batches` has
    the number of batches for each number of rows.
    """

    batch_rows: float
    mean_queue_s: float
    mean_compute_s: float
    batches: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Generation:
    """How well the generator did: `busy` is the share of time in which the busiest process had
    work, `lag_p99_s` how late requests were sent (0 in a closed loop, where none is due)."""

    busy: float
    lag_p99_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one load.

    Attributes:
        throughput: answers per second that came during the measured windows.
        latency: of the requests that were due (open loop) or sent (closed loop) during those
            windows and answered, whenever the answer came; from that moment to the answer.
        requests: how many those are, with the failed ones.
        errors: failed ones by reason.
        windows: every window of the step; the measured ones are the last `measured_s`.
        stable: whether the measured windows agree.
        server: None where the server does not say.
    """

    load: Load
    throughput: float
    latency: Latency
    requests: int
    errors: Mapping[str, int]
    windows: Sequence[Window]
    measured_s: float
    stable: bool
    generation: Generation
    server: ServerWork | None
    interrupted: bool = False

    @property
    def offered(self) -> float:
        """Requests per second that were due (open loop) or sent during the measured windows."""
        return self.requests / self.measured_s if self.measured_s else 0.0

    @property
    def marks(self) -> tuple[str, ...]:
        """Keys of `MARKS`: what a reader of the figures must know."""
        late_s = max(LATE_S, LATE_SHARE * self.latency.p50_s)
        found = {
            "interrupted": self.interrupted,
            "unstable": not self.stable,
            "late": self.generation.lag_p99_s > late_s,
            "busy": self.generation.busy > BUSY,
        }
        return tuple(mark for mark, applies in found.items() if applies)


MARKS: Mapping[str, str] = {
    "interrupted": "ended by Ctrl-C before it was measured in full",
    "unstable": "the last windows did not agree (few answers in each, or a load that drifts): "
    "read with care, or give it a longer --duration",
    "late": "the generator could not send on time, and its lag is part of the latencies: "
    "use more --processes, or another machine",
    "busy": "the generator had hardly an idle moment and may be the limit: "
    "use more --processes, or another machine",
}


def send_lag_s(lags_s: Seconds) -> float:
    """The 99th percentile of how late requests were sent, but never one of the `FEW_LATE` latest;
    0 where there are no others."""
    later = max(FEW_LATE, len(lags_s) // 100)
    return float(np.partition(lags_s, -later - 1)[-later - 1]) if len(lags_s) > later else 0.0


def window_of(latencies_s: Seconds, window_s: float) -> Window:
    """The window in which these answers came."""
    p99_s = float(np.percentile(latencies_s, 99)) if len(latencies_s) else math.nan
    return Window(len(latencies_s) / window_s, p99_s)


def agree(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether the last `STABLE_WINDOWS` lie within `tolerance` of each other, as a share of their
    mean, in throughput and in p99. Windows without answers never do."""
    last = windows[-STABLE_WINDOWS:]
    return len(last) == STABLE_WINDOWS and all(
        max(values) - min(values) <= tolerance * sum(values) / len(values)
        for values in ([w.throughput for w in last], [w.p99_s for w in last])
    )


def distribution(latencies_s: Seconds) -> Latency:
    """Exact percentiles, between ranks linearly interpolated."""
    if not len(latencies_s):
        return Latency(*[math.nan] * 6)
    percentiles = np.percentile(latencies_s, [50, 90, 99, 99.9, 100])
    return Latency(float(latencies_s.mean(dtype=np.float64)), *map(float, percentiles))


def work_between(
    before: Sequence[ModelStatistics], after: Sequence[ModelStatistics]
) -> ServerWork | None:
    """What the versions of a model did between two readings of their statistics, together.

    None where they did nothing, or where a version was loaded anew and counts from 0 again.
    """
    earlier = {entry.version: entry for entry in before}
    pairs = [(earlier.get(entry.version), entry) for entry in after]
    rows = sum(b.inference_count - (a.inference_count if a else 0) for a, b in pairs)
    executions = sum(b.execution_count - (a.execution_count if a else 0) for a, b in pairs)
    batches: dict[int, int] = {}
    for entries, sign in ((before, -1), (after, 1)):
        for entry in entries:
            for size in entry.batch_stats:
                counted = sign * size.compute_infer.count
                batches[size.batch_size] = batches.get(size.batch_size, 0) + counted
    if executions <= 0 or rows < 0 or any(count < 0 for count in batches.values()):
        return None

    def mean_s(name: str) -> float:
        ends, starts = ([getattr(e, name) for e in entries] for entries in (after, before))
        count = sum(d.count for d in ends) - sum(d.count for d in starts)
        ns = sum(d.ns for d in ends) - sum(d.ns for d in starts)
        return ns / count / 1e9 if count > 0 else math.nan

    return ServerWork(
        rows / executions,
        mean_s("queue"),
        mean_s("compute_infer"),
        {size: count for size, count in sorted(batches.items()) if count},
    )

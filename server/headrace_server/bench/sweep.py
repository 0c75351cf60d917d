"""Runs the steps of a plan one after the other, each until it holds still."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.answers import ModelStatistics
from headrace_server.bench.fleet import Fleet
from headrace_server.bench.orders import Begin, StepReport, Stop, WindowReport
from headrace_server.bench.plan import MAX_WINDOWS, STABLE_WINDOWS, Load, Timing
from headrace_server.bench.results import (
    Generation,
    Step,
    Window,
    agree,
    distribution,
    send_lag_s,
    window_of,
    work_between,
)

HEAD_START_S = 0.05
"""Time for an order to reach every process before it is due."""

REPORT_TIMEOUT_S = 30.0
"""How much later than expected a report may come: processes that cannot keep up come late."""

Snapshot = Sequence[ModelStatistics] | None


@dataclass(frozen=True, slots=True)
class Bench:
    """A plan, and what it takes to carry it out.

    Attributes:
        fleet: sends the load.
        timing: of each step.
        timeout_s: seconds that a request may take.
        statistics: reads those of the model, None where they cannot be had; called about twice a
            second.
        watch: is told each window of a step as soon as it is over.
    """

    fleet: Fleet
    timing: Timing
    timeout_s: float
    statistics: Callable[[], Snapshot]
    watch: Callable[[Load, Sequence[Window]], None]

    def run(self, loads: Iterable[Load]) -> Iterator[Step]:
        """The result of each load in turn. Ctrl-C ends the step that is running with the windows
        that it has, and with it the run.

        Raises:
            GeneratorLostError: a generator process is gone.
            KeyboardInterrupt: Ctrl-C before the first window of a step was over.
        """
        for load in loads:
            step = self._step(load)
            yield step
            if step.interrupted:
                return

    def _step(self, load: Load) -> Step:
        begin_s = time.monotonic() + HEAD_START_S
        window_s = self.timing.window_s
        measure_s = begin_s + self.timing.warmup_s
        windows: list[Window] = []
        snapshots: list[Snapshot] = []
        interrupted = False
        self.fleet.tell(Begin(load, begin_s, measure_s, window_s))
        self.watch(load, windows)
        try:
            time.sleep(max(0.0, measure_s - time.monotonic()))
            snapshots.append(self.statistics())
            while len(windows) < MAX_WINDOWS and not agree(windows, self.timing.tolerance):
                answers = self.fleet.collect(WindowReport, window_s + REPORT_TIMEOUT_S)
                snapshots.append(self.statistics())
                windows.append(
                    window_of(np.concatenate([a.latencies_s for a in answers]), window_s)
                )
                self.watch(load, windows)
        except KeyboardInterrupt:
            if not windows:
                raise
            interrupted = True
        stable = agree(windows, self.timing.tolerance)
        # A step that settled late is judged by the windows that agree.
        counted = STABLE_WINDOWS if stable else len(windows)
        until_s = measure_s + len(windows) * window_s
        since_s = until_s - counted * window_s
        self.fleet.tell(Stop(since_s, until_s, hold=not interrupted))
        reports = self.fleet.collect(StepReport, self.timeout_s + REPORT_TIMEOUT_S)
        latencies_s = np.concatenate([report.latencies_s for report in reports])
        lags_s = np.concatenate([report.lags_s for report in reports])
        errors = sum((Counter(report.errors) for report in reports), Counter[str]())
        before, after = snapshots[len(windows) - counted], snapshots[len(windows)]
        return Step(
            load,
            throughput=sum(window.throughput for window in windows[-counted:]) / counted,
            latency=distribution(latencies_s),
            requests=len(latencies_s) + errors.total(),
            errors=errors,
            windows=windows,
            measured_s=counted * window_s,
            stable=stable,
            generation=Generation(
                max(report.busy for report in reports),
                send_lag_s(lags_s),
            ),
            server=None if before is None or after is None else work_between(before, after),
            interrupted=interrupted,
        )

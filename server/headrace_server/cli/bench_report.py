"""How the results of `headrace bench` are told: a row for each step, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from headrace_server.bench.plan import ClosedLoop, Load
from headrace_server.bench.results import MARKS, ServerWork, Step
from headrace_server.cli.bench_options import Options

SEPARATOR = "  "


class StepTable:
    """Lines of a table that grows while the steps are measured, so widths are fixed."""

    def __init__(self, first: Load, rows: int) -> None:
        self._rows = rows
        self._columns = [
            *(["concurrency"] if isinstance(first, ClosedLoop) else ["   rate/s", "offered/s"]),
            " answers/s",
            *(["    rows/s"] if rows > 1 else []),
            "  p50 ms",
            "  p90 ms",
            "  p99 ms",
            "p99.9 ms",
            "errors",
            "batch rows",
            "queue ms",
            "compute ms",
        ]

    def header(self) -> str:
        """The names of the columns."""
        return SEPARATOR.join(self._columns)

    def row(self, step: Step) -> str:
        """One step: figures under the columns, then what there is to note."""
        latency, server, load = step.latency, step.server, step.load
        cells = [
            *(
                [f"{load.concurrency}"]
                if isinstance(load, ClosedLoop)
                else [f"{load.rate:,.10g}", f"{step.offered:,.1f}"]
            ),
            f"{step.throughput:,.1f}",
            *([f"{step.throughput * self._rows:,.1f}"] if self._rows > 1 else []),
            *(
                _milliseconds(seconds)
                for seconds in (latency.p50_s, latency.p90_s, latency.p99_s, latency.p999_s)
            ),
            f"{sum(step.errors.values()):,}",
            f"{server.batch_rows:,.1f}" if server else "",
            _milliseconds(server.mean_queue_s) if server else "",
            _milliseconds(server.mean_compute_s) if server else "",
        ]
        aligned = [
            cell.rjust(len(column)) for cell, column in zip(cells, self._columns, strict=True)
        ]
        failed = [f"{count:,} {reason}" for reason, count in step.errors.items()]
        return SEPARATOR.join([*aligned, ", ".join([*failed, *step.marks])]).rstrip()


def explanations(steps: Sequence[Step]) -> list[str]:
    """What the marks mean that occur."""
    return [
        f"{mark}: {meaning}"
        for mark, meaning in MARKS.items()
        if any(mark in step.marks for step in steps)
    ]


def report(options: Options, steps: Sequence[Step]) -> str:
    """Everything that was measured, as a JSON object; seconds throughout, null for no value."""
    return json.dumps(
        {
            "model": options.model,
            "version": options.version,
            "address": options.address,
            "transport": options.transport,
            "processes": options.processes,
            "rows": options.rows,
            "arrivals": None if isinstance(steps[0].load, ClosedLoop) else options.arrivals,
            "input": None if options.input_file is None else str(options.input_file),
            "shapes": list(options.shapes),
            "timeout_s": options.timeout,
            "warmup_s": options.warmup,
            "window_s": options.timing.window_s,
            "stable_within_percent": options.stable_within,
            "seed": options.seed,
            "steps": [_step(step) for step in steps],
        },
        indent=1,
    )


def _step(step: Step) -> dict[str, Any]:
    closed = isinstance(step.load, ClosedLoop)
    return {
        "concurrency" if closed else "rate": (
            step.load.concurrency if isinstance(step.load, ClosedLoop) else step.load.rate
        ),
        "measured_s": step.measured_s,
        "requests": step.requests,
        "offered": step.offered,
        "throughput": step.throughput,
        "latency_s": {
            name: _number(getattr(step.latency, field))
            for name, field in (
                ("mean", "mean_s"),
                ("p50", "p50_s"),
                ("p90", "p90_s"),
                ("p99", "p99_s"),
                ("p99.9", "p999_s"),
                ("max", "max_s"),
            )
        },
        "errors": dict(step.errors),
        "stable": step.stable,
        "interrupted": step.interrupted,
        "marks": list(step.marks),
        "windows": [
            {"throughput": window.throughput, "p99_s": _number(window.p99_s)}
            for window in step.windows
        ],
        "generator": {
            "busy": step.generation.busy,
            "send_lag_p99_s": step.generation.lag_p99_s,
        },
        "server": None if step.server is None else _server(step.server),
    }


def _server(work: ServerWork) -> dict[str, Any]:
    return {
        "mean_batch_rows": work.batch_rows,
        "mean_queue_s": _number(work.mean_queue_s),
        "mean_compute_s": _number(work.mean_compute_s),
        "batches": {str(rows): count for rows, count in work.batches.items()},
    }


def _milliseconds(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1e3:,.2f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value

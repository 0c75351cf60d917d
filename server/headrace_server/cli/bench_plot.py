"""Draws what `headrace bench` measured: latency against load, and the batches of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from headrace_server.bench.plan import ClosedLoop
from headrace_server.bench.results import Step
from headrace_server.cli.batch_ranges import by_range

SIZE_INCHES = (12.0, 5.0)
DOTS_PER_INCH = 144

# From light to dark, so that the tail stands out, and told apart without colour by their marks.
PERCENTILES = (
    ("p50_s", "p50", "#7fb2e5", "o"),
    ("p90_s", "p90", "#3a7ebf", "s"),
    ("p99_s", "p99", "#123f73", "^"),
)


def draw(steps: Sequence[Step], title: str, file: Path) -> None:
    """Write the figure; the suffix of `file` chooses the format.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontweight="bold")
    latencies, batches = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_latencies(latencies, steps)
    _draw_batches(batches, steps)
    figure.savefig(file)


def _draw_latencies(axes: Axes, steps: Sequence[Step]) -> None:
    answered = [step for step in steps if not math.isnan(step.latency.p50_s)]
    loads = [step.throughput for step in answered]
    for field, name, colour, mark in PERCENTILES:
        values = [getattr(step.latency, field) * 1e3 for step in answered]
        axes.plot(loads, values, color=colour, marker=mark, markersize=5, label=name)
    for step in answered:
        # Above and left of the highest curve: it rises to the right.
        axes.annotate(
            _label(step) + ("" if step.stable else "*"),
            (step.throughput, step.latency.p99_s * 1e3),
            textcoords="offset points",
            xytext=(-3, 6),
            ha="right",
            fontsize=8,
            color="#444444",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.margins(y=0.12)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("answers per second")
    axes.set_ylabel("latency, ms")
    note = "  (*: not stable)" if not all(step.stable for step in answered) else ""
    axes.set_title(f"Latency against load, by {_kind(steps)}{note}", fontsize=10, loc="left")
    axes.legend(frameon=False, loc="best")


def _draw_batches(axes: Axes, steps: Sequence[Step]) -> None:
    """A column for each step, a row for each range of batch sizes; the colour of a cell is the
    share of the step's batches."""
    axes.set_title("Batches by rows, % of each step", fontsize=10, loc="left")
    counted = [step for step in steps if step.server is not None and step.server.batches]
    if not counted:
        axes.text(0.5, 0.5, "the server told nothing", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    columns = [by_range(step.server.batches) for step in counted if step.server is not None]
    ranges = [name for name, _ in max(columns, key=len)]
    totals = [sum(count for _, count in column) for column in columns]
    cells = [
        [
            column[index][1] / total if index < len(column) else 0.0
            for column, total in zip(columns, totals, strict=True)
        ]
        for index in range(len(ranges))
    ]
    axes.imshow(cells, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for index, row in enumerate(cells):
        for column, share in enumerate(row):
            if share >= 0.005:
                colour = "white" if share > 0.55 else "#222222"
                axes.text(
                    column,
                    index,
                    f"{share:.0%}"[:-1],
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
    axes.set_xticks(range(len(counted)), [_label(step) for step in counted])
    axes.set_yticks(range(len(ranges)), ranges)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(_kind(steps))
    axes.set_ylabel("rows in a batch")


def _kind(steps: Sequence[Step]) -> str:
    return "concurrency" if isinstance(steps[0].load, ClosedLoop) else "requests per second"


def _label(step: Step) -> str:
    return f"{step.load.concurrency if isinstance(step.load, ClosedLoop) else step.load.rate:,.10g}"

"""Draws what `headrace explain` says. Imports matplotlib, which is an extra of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from headrace.explanations import Activity, CostCurve, LearnedPlan, ModelExplanation
from headrace_server.cli.explain import where_batching_pays

PANEL_INCHES = (5.5, 3.9)
DOTS_PER_INCH = 130
TITLE_COLUMNS = 110
GREY = "0.55"
BLUE = "#2a6f97"


def draw(explanation: ModelExplanation, file: Path) -> None:
    """Write a picture of the explanation, in the format that the file's name ends in.

    Learned curves are above, the last minute is below. What there is nothing to say of is left out.

    Raises:
        OSError: the file cannot be written.
    """
    plan, minute = explanation.plan, explanation.last_minute
    learned = plan is not None and bool(plan.curves)
    told = minute.batches > 0 or not learned
    width, height = PANEL_INCHES
    tall = learned + told
    figure = Figure(figsize=(2 * width, tall * height + 0.7), dpi=DOTS_PER_INCH)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    panels = figure.subplots(tall, 2, squeeze=False)
    if plan is not None and learned:
        _durations(panels[0][0], plan)
        _gains(panels[0][1], plan)
    if told:
        _batch_rows(panels[-1][0], minute)
        if any(sample.expected_s is not None for sample in minute.samples):
            _predictions(panels[-1][1], minute)
        else:
            _measured(panels[-1][1], minute)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
        panel.grid(color="0.92")
    sentence = textwrap.fill(where_batching_pays(explanation), TITLE_COLUMNS)
    figure.suptitle(f"{explanation.name}, version {explanation.version}\n{sentence}", fontsize=11)
    figure.savefig(file)


def _durations(panel: Axes, plan: LearnedPlan) -> None:
    for curve, colour in zip(plan.curves, _colours(plan), strict=True):
        expected_ms = [1e3 * seconds for seconds in curve.durations_s]
        late_ms = [plan.margin * ms for ms in expected_ms]
        panel.plot(curve.rows, expected_ms, color=colour, label=_label(curve))
        if plan.margin > 1:
            panel.fill_between(curve.rows, expected_ms, late_ms, color=colour, alpha=0.15, lw=0)
        panel.plot(curve.enough_rows, 1e3 * curve.enough_s, "o", color=colour)
    if plan.margin > 1:
        panel.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label="19 of 20 are within")
    panel.plot([], [], "o", color=GREY, label="enough")
    _axes(panel, "What a batch is expected to take", "rows", "duration, ms")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, loc="upper left")


def _gains(panel: Axes, plan: LearnedPlan) -> None:
    for curve, colour in zip(plan.curves, _colours(plan), strict=True):
        panel.plot(curve.rows, curve.gains, color=colour, label=_label(curve))
        panel.plot(curve.enough_rows, curve.enough_gain, "o", color=colour)
        panel.annotate(
            f"{curve.enough_rows} row{'s' * (curve.enough_rows > 1)}, {curve.enough_gain:.1f}x",
            (curve.enough_rows, curve.enough_gain),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center" if curve.enough_rows > 1 else "left",
            fontsize=8,
            color=colour,
        )
    panel.axhline(1, color=GREY, lw=0.8, ls="--", zorder=1)
    _axes(panel, "What batching gains", "rows", "work per second, times single rows")
    panel.set_ylim(0, 1.15 * max(1.5, *(max(curve.gains) for curve in plan.curves)))


def _batch_rows(panel: Axes, minute: Activity) -> None:
    _axes(panel, "Batches of the last minute", "rows", "batches")
    if not minute.batch_rows:
        _nothing(panel)
        return
    panel.bar(list(minute.batch_rows), list(minute.batch_rows.values()), color=BLUE)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))


def _predictions(panel: Axes, minute: Activity) -> None:
    pairs = [(s.expected_s, s.duration_s) for s in minute.samples if s.expected_s is not None]
    expected_ms = [1e3 * expected_s for expected_s, _ in pairs]
    measured_ms = [1e3 * duration_s for _, duration_s in pairs]
    panel.scatter(expected_ms, measured_ms, s=12, color=BLUE, alpha=0.5, lw=0)
    ends = [min(expected_ms + measured_ms), max(expected_ms + measured_ms)]
    panel.plot(ends, ends, color=GREY, lw=0.8, ls="--", zorder=1, label="as expected")
    panel.set_xscale("log")
    panel.set_yscale("log")
    _plain_numbers(panel.xaxis, ends)
    _plain_numbers(panel.yaxis, ends)
    _axes(panel, "Expected and measured, last minute", "expected, ms", "measured, ms")
    panel.legend(frameon=False, loc="upper left")


def _measured(panel: Axes, minute: Activity) -> None:
    _axes(panel, "Measured, last minute", "rows", "duration, ms")
    if not minute.samples:
        _nothing(panel)
        return
    rows = [sample.rows for sample in minute.samples]
    measured_ms = [1e3 * sample.duration_s for sample in minute.samples]
    panel.scatter(rows, measured_ms, s=12, color=BLUE, alpha=0.5, lw=0)
    panel.set_yscale("log")
    _plain_numbers(panel.yaxis, measured_ms)


def _plain_numbers(axis: Axis, values: Sequence[float]) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10, or with powers of ten over wide ranges."""
    wide = max(values) > 300 * min(values)
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _axes(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10, loc="left", weight="bold")
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    if x == "rows":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _nothing(panel: Axes) -> None:
    panel.text(0.5, 0.5, "none", transform=panel.transAxes, ha="center", color=GREY)
    panel.set_xticks([])
    panel.set_yticks([])


def _colours(plan: LearnedPlan) -> list[tuple[float, float, float, float]]:
    """From dark to light with length; the lightest are too pale for a line on white."""
    shades = colormaps["viridis"]
    count = len(plan.curves)
    return [shades(0.15 + 0.65 * i / max(1, count - 1)) for i in range(count)]


def _label(curve: CostCurve) -> str:
    return f"length {curve.length}" if curve.length else "expected"

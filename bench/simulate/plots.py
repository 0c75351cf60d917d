"""Draws what the study found: on-time share against load. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bench.simulate.capacity import ON_TIME
from bench.simulate.study import HEADLINE, Finding, Study

PANEL_INCHES = (4.6, 3.2)
DOTS_PER_INCH = 110
LINES = {
    "bound": ("0.55", "--"),
    "ours": ("#2a6f97", "-"),
    "static": ("#c8553d", "-"),
    "immediate": ("#d9a441", "-"),
}


def draw(study: Study, findings: Sequence[Finding], directory: Path) -> list[Path]:
    """Write one picture for each process of arrivals, a panel for each number of workers."""
    files = []
    headline = [f for f in findings if f.shares and f.point.objective == HEADLINE]
    for process in dict.fromkeys(f.point.process for f in headline):
        chosen = [f for f in headline if f.point.process == process]
        width, height = PANEL_INCHES
        columns = min(2, len(chosen))
        rows = -(-len(chosen) // columns)
        figure = Figure((columns * width, rows * height), DOTS_PER_INCH, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for panel, finding in zip(panels, chosen, strict=False):
            _panel(panel, study, finding)
        figure.suptitle(
            f"Requests on time, {process} arrivals, objective "
            f"{chosen[0].point.objective_s * 1e3:.0f} ms (lines: means, bands: all seeds)",
            fontsize=10,
        )
        files.append(directory / f"simulation-{process}.png")
        # Without the version of matplotlib, which would make every file differ.
        figure.savefig(files[-1], metadata={"Software": None})
    return files


def _panel(panel: Axes, study: Study, finding: Finding) -> None:
    workers = finding.point.workers
    names = {
        "bound": "exact optimum" if workers == 1 else "upper bound",
        "ours": "learned policy",
        "static": "best fixed settings",
        "immediate": "at once, up to 32",
    }
    for name, (colour, style) in LINES.items():
        shares = finding.shares[name]
        means = [fmean(runs) for runs in shares]
        panel.plot(study.loads, means, style, color=colour, label=names[name])
        lows, highs = [min(runs) for runs in shares], [max(runs) for runs in shares]
        panel.fill_between(study.loads, lows, highs, color=colour, alpha=0.15, lw=0)
    panel.axhline(ON_TIME, color="0.55", lw=0.6, ls=":")
    panel.set_title(f"{workers} worker{'s' * (workers > 1)}", fontsize=10, loc="left")
    panel.set_xlabel(f"load (1 is {finding.rate:.0f} requests per second)")
    panel.set_ylim(0, 1.02)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.grid(color="0.92")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower left")

"""Draws what was measured: a panel for each scenario, and what settings did. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.peers.results import Findings, figure
from bench.peers.scenarios import SCENARIOS, Scenario

PANEL_INCHES = (5.4, 2.7)
DOTS_PER_INCH = 110
OURS, OTHERS = "#2a6f97", "#b8b8b8"
FIGURES = {"per_s": "answers per second", "cpu_us": "CPU µs per answer", "p99_ms": "p99 ms"}
SHOWN = {
    "unary": ("per_s", "cpu_us"),
    "alone": ("p50_ms", "p99_ms"),
    "streams": ("per_s", "cpu_us"),
    "fewer-streams": ("per_s", "cpu_us"),
    "sentences": ("per_s", "p99_ms"),
    "images": ("per_s", "cpu_us"),
}


def draw(findings: Findings, directory: Path) -> list[Path]:
    """Write the picture; none where nothing was measured."""
    measured = [scenario for scenario in SCENARIOS if findings.contenders(scenario.key)]
    if not measured:
        return []
    width, height = PANEL_INCHES
    picture = Figure((2 * width, len(measured) * height), DOTS_PER_INCH, layout="constrained")
    panels = picture.subplots(len(measured), 2, squeeze=False)
    for row, scenario in zip(panels, measured, strict=True):
        for panel, name in zip(row, SHOWN[scenario.key], strict=True):
            _panel(panel, findings, scenario, name)
    picture.suptitle("Bars: medians over the rounds; lines: the least and the most", fontsize=10)
    file = directory / "benchmarks.png"
    # Without the version of matplotlib, which would make every file differ.
    picture.savefig(file, metadata={"Software": None})
    return [file]


def _panel(panel: Axes, findings: Findings, scenario: Scenario, name: str) -> None:
    names = findings.contenders(scenario.key)
    spreads = [figure(findings.of(scenario.key, contender), name) for contender in names]
    medians = [s.median for s in spreads]
    errors = [[s.median - s.least for s in spreads], [s.most - s.median for s in spreads]]
    colours = [OURS if contender.startswith("Headrace") else OTHERS for contender in names]
    panel.barh(names, medians, xerr=errors, color=colours, ecolor="0.35", capsize=2)
    panel.invert_yaxis()
    panel.set_title(scenario.title, fontsize=9, loc="left")
    panel.set_xlabel(FIGURES.get(name, name.replace("_", " ")), fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)

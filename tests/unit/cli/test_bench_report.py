"""Rows, JSON and pictures of what was measured, also where something could not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace_server.bench.arrivals import Renewal
from headrace_server.bench.plan import ClosedLoop, OpenLoop
from headrace_server.bench.results import Generation, ServerWork, Step, Window, distribution
from headrace_server.cli.bench_plot import draw
from headrace_server.cli.bench_report import StepTable, explanations

STEP = Step(
    load=ClosedLoop(8),
    throughput=1234.5,
    latency=distribution(np.array([0.001, 0.002, 0.003], np.float32)),
    requests=3,
    errors={},
    windows=[Window(1234.5, 0.003)],
    measured_s=1.0,
    stable=True,
    generation=Generation(0.5, 0.0),
    server=ServerWork(4.2, 0.0005, 0.0015, {1: 10, 4: 30, 9: 60}),
)
FAILED = replace(
    STEP,
    throughput=0.0,
    latency=distribution(np.empty(0, np.float32)),
    errors={"queue_full": 1200, "DEADLINE_EXCEEDED": 3},
    stable=False,
    server=None,
)


def test_a_row_stands_under_its_header() -> None:
    table = StepTable(STEP.load, rows=2)
    header, row = table.header(), table.row(STEP)
    cells = ["8", "1,234.5", "2,469.0", "2.00", "2.80", "2.98", "3.00", "0", "4.2", "0.50", "1.50"]
    assert row.split() == cells
    assert header.index("answers/s") + len("answers/s") == row.index("1,234.5") + len("1,234.5")
    assert len(row) == len(header)


def test_an_open_loop_tells_what_was_offered_beside_the_rate_that_was_asked_for() -> None:
    step = replace(STEP, load=OpenLoop(100.0, Renewal()), requests=192, measured_s=2.0)
    table = StepTable(step.load, rows=1)
    assert table.header().split()[:3] == ["rate/s", "offered/s", "answers/s"]
    assert table.row(step).split()[:3] == ["100", "96.0", "1,234.5"]


def test_what_could_not_be_measured_is_left_out_and_errors_are_told_by_reason() -> None:
    row = StepTable(FAILED.load, rows=1).row(FAILED)
    notes = ["1,203", "1,200", "queue_full,", "3", "DEADLINE_EXCEEDED,", "unstable"]
    assert row.split() == ["8", "0.0", *notes]


def test_only_marks_that_occur_are_explained() -> None:
    assert explanations([STEP]) == []
    assert [line.partition(":")[0] for line in explanations([STEP, FAILED])] == ["unstable"]


@pytest.mark.parametrize(
    "steps",
    [
        [STEP],
        [STEP, FAILED],
        [FAILED],
        [replace(STEP, load=OpenLoop(100.0, Renewal())), replace(STEP, server=None)],
    ],
)
def test_a_picture_is_drawn_whatever_is_missing(steps: list[Step], tmp_path: Path) -> None:
    draw(steps, "m at 127.0.0.1:8001", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

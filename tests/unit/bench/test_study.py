"""What the study makes of what it finds, and a short one from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bench.simulate.__main__ import main
from bench.simulate.capacity import Duel, Rival
from bench.simulate.points import ROUND, Point
from bench.simulate.study import OBJECTIVES, REQUESTS, Finding, full, merged, quick
from bench.simulate.targets import Case, Target, ratio


@pytest.mark.parametrize(
    ("ours", "rival", "expected"), [(0.4, None, math.inf), (None, 0.4, 0.0), (None, None, None)]
)
def test_who_alone_carries_a_point_wins_it(
    ours: float | None, rival: float | None, expected: float | None
) -> None:
    point = Point("gpu", "cv4", 1, 2.5, 400)
    finding = Finding(point, 1.0, Duel(ours, None, {ROUND: Rival(rival, None)}), {}, {}, 0.0)
    assert ratio(finding, ROUND) == expected


def test_target_is_missed_by_any_case_on_the_wrong_side() -> None:
    cases = [Case("here", 1.2), Case("there", 1.0, headline=False)]
    at_least, at_most = Target("a", 1.1, cases), Target("b", 1.1, cases, at_most=True)
    assert [case.where for case in at_least.missed] == ["there"]
    assert [case.where for case in at_most.missed] == ["here"]
    assert at_least.worst() == cases[1]
    assert at_least.worst(headline=True) == at_most.worst() == cases[0]


def test_cases_that_a_bound_excludes_are_not_possible() -> None:
    out_of_reach, in_reach = Case("a", 1.0, possible=1.05), Case("b", 1.0, possible=1.2)
    # A bound that is passed was taken over fewer seeds.
    kept = Case("c", 1.2, possible=1.05)
    target = Target("a", 1.1, [out_of_reach, in_reach, kept, Case("no bound", 1.0)])
    assert [case.where for case in target.possible] == ["b", "c", "no bound"]


def test_runs_of_the_study_last_long_enough() -> None:
    study = full()
    for point in study.points:
        assert point.requests >= max(REQUESTS, OBJECTIVES * point.rate * point.objective_s)


def test_findings_are_of_the_points_of_the_study_in_its_order() -> None:
    study = quick()

    def found(point: Point, rate: float) -> Finding:
        return Finding(point, rate, Duel(None, None, {}), {}, {}, 0.0)

    points = study.points
    before = [found(point, 1.0) for point in reversed(points[1:])]
    beside = found(Point("mlp", "cv4", 3, 2.5, 400), 1.0)
    kept = merged(study, [*before, beside], [found(point, 2.0) for point in points[:2]])
    assert [(f.point, f.rate) for f in kept] == [
        (point, 2.0 if point in points[:2] else 1.0) for point in points
    ]
    with pytest.raises(ValueError, match="examine these again"):
        merged(study, before, [])


def test_quick_study_writes_a_report_raw_data_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--out", str(tmp_path), "--processes", "2"]) == 0
    text = (tmp_path / "simulation.md").read_text()
    assert text in capsys.readouterr().out
    assert "| gpu | poisson | 4 | 4.08x, 25 ms |" in text
    raw = json.loads((tmp_path / "simulation.json").read_text())
    assert len(raw["findings"]) == 4
    assert len(raw["decisions"]) == 5
    assert len(raw["mixtures"]["closed"]) == 60
    assert "| text, turns of 1.4 ms | 64 | learned |" in text
    assert "| cv4, 2w, load 0.9 |" in text
    again = ("--findings", str(tmp_path / "simulation.json"), "--again", "cv4")
    assert main(["--quick", "--out", str(tmp_path), "--processes", "1", *again]) == 0
    assert json.loads((tmp_path / "simulation.json").read_text())["findings"] == raw["findings"]
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["simulation-cv4.png", "simulation-poisson.png"]

"""`make bench-options`, on a small scale: it runs, and says what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.options import SHAPES, main

pytestmark = pytest.mark.usefixtures("torch_threads")


def test_every_option_is_held_against_the_model_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    chosen = ["--models", "mlp", "--options", "bf16", "int8", "--pairs", "2", "--json", str(file)]
    assert main(chosen) == 0
    report = json.loads(file.read_text())
    rows = report["rows"]
    assert len(rows) == 3 * len(SHAPES["mlp"])
    for row in rows:
        assert row["median_ms"] > 0
        assert row["times_as_fast"] > 0
        assert (row["relative_difference"] == 0) is (row["option"] == "plain")
        assert row["relative_difference"] < 0.05
    assert set(report["load_s"]["mlp"]) == {"plain", "bf16", "int8"}
    assert "x as fast" in capsys.readouterr().out

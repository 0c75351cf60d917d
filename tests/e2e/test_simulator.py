"""A short run of `make bench-sim-validate`: the simulator and a real server agree at light load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.simulate.validate import main

pytestmark = [pytest.mark.e2e, pytest.mark.alone]


def test_simulated_and_real_server_answer_on_time_at_light_load(tmp_path: Path) -> None:
    asked = "--arrivals poisson --workers 1 --loads 0.2 --requests 60 --out"
    light = [*asked.split(), str(tmp_path)]
    assert main(light) in (0, 1)  # 1: they differ by more than is good, which takes more to tell
    (found,) = json.loads((tmp_path / "simulation-validation.json").read_text())
    assert found["requests"] == 60
    assert found["simulated"] >= 0.9
    # A busy machine makes some late; how many is what `make bench-sim-validate` measures.
    assert found["measured"] >= 0.5
    assert found["hop_s"] < 0.05
    assert "| 1 | 0.2 |" in (tmp_path / "simulation-validation.md").read_text()

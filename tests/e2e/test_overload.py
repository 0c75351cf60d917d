"""The overload benchmark in small: that it runs, and that twice the capacity is still answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

ROOT = Path(__file__).parents[2]


def test_twice_the_capacity_is_answered_or_told_when_to_come_again(tmp_path: Path) -> None:
    file = tmp_path / "overload.json"
    small = ("--loads", "0.5", "2", "--rounds", "1", "--pairs", "1")
    smaller = ("--seconds", "1.5", "--connections", "20", "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "bench.overload", *small, *smaller],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(file.read_text())
    light, heavy = found["goodput"]
    # How much is good is what `make bench-overload` measures; here other tests may run beside it.
    assert heavy["good_by_server"] > 0.4 * light["good_by_server"]
    assert sum(heavy["reasons"].values()) > 0
    assert set(heavy["reasons"]) <= {"overloaded", "predicted_late", "queue_timeout"}
    assert heavy["hints"] > 0.5
    assert {run["policy"] for run in found["recovery"]} == {"never again", "SDK's default"}
    assert {run["connections"] for run in found["idle"]} == {0, 20}
    assert "p99 ratio" in done.stdout

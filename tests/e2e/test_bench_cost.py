"""The benchmark of what a request costs runs and writes what it promises; its numbers are free."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load (nghttp2-client)"),
]


def test_costs_are_measured_and_written(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    small = ("--rounds", "1", "--requests", "800", "--queued-requests", "120", "--idle", "0.1")
    command = [sys.executable, "-m", "bench.cost", *small, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert [(run["server"], run["clients"]) for run in written["runs"]] == [
        *[("echo", 4), ("headrace", 4)],
        *[("echo", 1), ("headrace", 1)],
    ]
    assert sorted((run["server"], run["in_flight"]) for run in written["queued"]) == [
        *[("echo", 100), ("echo", 10_000)],
        *[("headrace", 100), ("headrace", 10_000)],
    ]
    assert written["at_rest"]["front_bytes"] > 0
    assert written["at_rest"]["worker_bytes"] > 0
    assert "CPU ratio" in done.stdout
    assert "at rest" in done.stdout

"""The benchmark of HTTP runs and writes what it promises; its numbers are free."""

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


def test_all_ways_are_measured_in_turn_and_written(tmp_path: Path) -> None:
    file = tmp_path / "http.json"
    command = [sys.executable, "-m", "bench.over_http", "--rounds", "1", "--requests", "400"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert sorted((run["in_flight"], run["way"]) for run in written) == [
        *[(1, "JSON"), (1, "bytes"), (1, "gRPC")],
        *[(64, "JSON"), (64, "bytes"), (64, "gRPC")],
    ]
    assert all(0 < run["engine_us"] <= run["cpu_us"] for run in written)
    assert "64 in flight" in done.stdout

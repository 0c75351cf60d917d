"""The benchmark of several fronts runs and writes what it promises; its numbers are free."""

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
    pytest.mark.skipif(sys.platform != "linux", reason="fronts need Linux"),
]


def test_fronts_are_measured_in_turn_and_written(tmp_path: Path) -> None:
    file = tmp_path / "fronts.json"
    command = [sys.executable, "-m", "bench.fronts", "--rounds", "1", "--requests", "400"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert sorted((run["fronts"], run["clients"], run["streams"]) for run in written) == [
        *[(1, 4, 16), (1, 16, 4)],
        *[(2, 4, 16), (2, 16, 4)],
    ]
    assert all(0 < run["engine_us"] <= run["cpu_us"] for run in written)
    assert "2 fronts" in done.stdout

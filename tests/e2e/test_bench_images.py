"""A short run of `make bench-images`, so that it does not rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.images import WAYS, main

from shared_memory import DIRECTORY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm"),
]


def test_images_are_answered_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "images.json"
    small = ("--payloads", "image", "volume_back", "--in-flight", "1", "4")
    assert main([*small, "--rounds", "1", "--seconds", "0.2", "--json", str(file)]) == 0
    runs = json.loads(file.read_text())
    assert [(run["payload"], run["in_flight"], run["way"]) for run in runs] == [
        (payload, in_flight, way)
        for payload in ("image", "volume_back")
        for in_flight in (1, 4)
        for way in WAYS
    ]
    assert all(run["calls"] >= run["in_flight"] and run["calls_per_s"] > 0 for run in runs)
    assert capsys.readouterr().out.count("shared memory: ") == 4

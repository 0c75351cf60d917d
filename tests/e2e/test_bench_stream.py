"""A short run of `make bench-stream`: calls go both ways, to an echo and to Headrace."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench.stream import IN_FLIGHT, main

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read from /proc"),
]


def test_unary_and_multiplexed_calls_are_measured_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "stream.json"
    assert main(["--rounds", "1", "--requests", "256", "--json", str(file)]) == 0
    runs = json.loads(file.read_text())
    assert [(run["server"], run["in_flight"], run["way"]) for run in runs] == [
        (server, in_flight, way)
        for server in ("echo", "headrace")
        for in_flight in IN_FLIGHT
        for way in ("unary", "stream")
    ]
    assert all(run["calls_per_s"] > 0 for run in runs)
    # The system's books of CPU time are in hundredths of a second: short runs may take none.
    assert all(run["server_us"] >= 0 and run["client_us"] >= 0 for run in runs)
    assert capsys.readouterr().out.count("in flight") == 2 * len(IN_FLIGHT)

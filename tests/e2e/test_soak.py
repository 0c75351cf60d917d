"""A minute of `make soak`: kills and reloads under load, and every answer accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.soak.__main__ import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_nothing_is_lost_in_a_minute_of_kills_and_reloads(tmp_path: Path) -> None:
    """At a rate and with deadlines that a busy machine can bear: speed is `make soak`'s matter."""
    found = tmp_path / "soak.json"
    load = ("--seconds", "60", "--rate", "30", "--calibrate", "3", "--deadline", "120")
    assert main([*load, "--recoveries", "1", "--json", str(found)]) == 0
    soak = json.loads(found.read_text())
    assert soak["valid"]["right"] > 1_000
    assert sum(soak["killed"].values()) >= 5
    assert 0.0 < soak["lag_s"] < 60.0
    assert any(target["name"].startswith("how late the client") for target in soak["targets"])

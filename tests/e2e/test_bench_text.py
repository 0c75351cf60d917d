"""A short run of `make bench-text`: two policies side by side; the numbers are free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.text import main

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("torch_threads")]


def test_sentences_are_measured_under_policies_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.json"
    small = ("--concurrency", "1", "8", "--rounds", "1", "--seconds", "1", "--alone", "4")
    assert main([*small, "--against", "no batching", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert [(run["concurrency"], run["policy"]) for run in written["runs"]] == [
        (concurrency, policy) for concurrency in (1, 8) for policy in ("learned", "no batching")
    ]
    assert all(run["sentences_per_s"] > 0 for run in written["runs"])
    assert all(0 < run["p50_ms"] <= run["p99_ms"] for run in written["runs"])
    (alone,) = written["alone"]
    assert 0 < alone["compute_ms"] < alone["total_ms"]
    assert min(alone["direct_tokenize_ms"], alone["direct_forward_ms"]) > 0
    shown = capsys.readouterr().out
    assert shown.count("in flight, no batching") == 2
    assert "one at a time: the worker takes" in shown

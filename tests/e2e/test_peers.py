"""`bench.peers` from end to end with what needs no installation: Headrace and a bare echo."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(320)]

TIMEOUT_S = 300.0
"""A busy machine takes a minute to load the models and half of one to start each server."""


def peers(out: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    # So little time that each scenario has its two rounds and no more.
    quick = ("--minutes", "0.01", "--scale", "0.2", "--out", str(out))
    return subprocess.run(
        [sys.executable, "-m", "bench.peers", "--servers", "echo", "headrace", *quick, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=None if path is None else {"PATH": path},
    )


def runs(out: Path) -> list[Any]:
    found: list[Any] = json.loads((out / "benchmarks.json").read_text())["runs"]
    return found


def test_sentences_are_measured_and_written_down(tmp_path: Path) -> None:
    done = peers(tmp_path, "--scenarios", "sentences")
    assert done.returncode == 0, done.stderr
    assert [(r["contender"], r["round"]) for r in runs(tmp_path)] == [
        ("Headrace", 0),
        ("Headrace", 1),
    ]
    assert all(r["shot"]["per_s"] > 0 for r in runs(tmp_path))
    assert "## Sentences, 64 in flight" in (tmp_path / "BENCHMARKS.md").read_text()
    assert (tmp_path / "benchmarks.png").exists()


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load")
def test_headrace_meets_the_echo_under_load_from_h2load(tmp_path: Path) -> None:
    done = peers(tmp_path, "--scenarios", "unary", "alone", "streams", "fewer-streams", "images")
    assert done.returncode == 0, done.stderr
    measured = {(r["scenario"], r["contender"]) for r in runs(tmp_path)}
    assert measured >= {
        ("unary", "bare echo"),
        ("unary", "Headrace"),
        ("alone", "Headrace"),
        ("streams", "Headrace, unary"),
        ("fewer-streams", "Headrace, streams"),
        ("images", "Headrace"),
    }


def test_without_h2load_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = peers(tmp_path, "--scenarios", "unary", path=str(tmp_path))
    assert done.returncode == 1
    assert "expected h2load on the path: the package nghttp2-client has it" in done.stderr
    assert done.stderr.count("\n") == 1

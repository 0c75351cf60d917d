"""Every benchmark, and what else takes long to run by hand, runs small in a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGET = re.compile(
    r"^(bench-[\w-]+|soak|fuzz|demo):.*\n\t\$\(BIN\)/python -m ([\w.]+)", re.MULTILINE
)
MODULES = dict(TARGET.findall((ROOT / "Makefile").read_text()))
PHONY = re.findall(r"(?<=\s)(?:bench-[\w-]+|soak|fuzz|demo)(?=\s)", (ROOT / "Makefile").read_text())
TESTS = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]


def test_every_target_is_looked_at() -> None:
    assert {*PHONY} <= {*MODULES}
    assert len(MODULES) >= 16


@pytest.mark.parametrize("target", MODULES)
def test_a_target_has_a_test_that_runs_its_module(target: str) -> None:
    module = re.escape(MODULES[target])
    # Imported (a package by its `__main__`), or run as a command would run it.
    runs = re.compile(rf'^from {module}(\.__main__)? import .*\bmain\b|"-m", "{module}"', re.M)
    assert any(runs.search(text) for text in TESTS)

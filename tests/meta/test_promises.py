"""What README and docs say is held by a test is held by one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(test_\w+|\d+-[a-z-]+|tests/[\w/.]+)`")
FILES = re.compile(r"`((?:docs|examples|protos|tests)/[\w./-]+)`")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The names of all test functions and scenarios."""
    found = {path.stem for path in (ROOT / "tests/scenarios").glob("*.txt")}
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.update(re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.M))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_and_file_that_is_named_exists(document: Path, known: set[str]) -> None:
    text = document.read_text()
    assert not [name for name in FILES.findall(text) if not (ROOT / name).exists()]
    assert not {name for name in NAMED.findall(text) if "/" not in name} - known


def test_every_promise_names_its_test() -> None:
    for line in (ROOT / "docs/RELIABILITY.md").read_text().splitlines():
        # Tables of promises have two columns, those of measurements four.
        if line.startswith("| ") and line.count(" | ") == 1 and line != "| promise | held by |":
            assert NAMED.search(line), line

"""Targets in documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.targets import Target, exit_status, replace_section, table

MET = Target("wrong answers", "0", "0", met=True, grave=True)
SLOW = Target("growth", "at most 1.05x", "1.2x", met=False)
LOST = Target("requests lost", "0", "3", met=False, grave=True)


def test_only_a_grave_miss_fails_the_run() -> None:
    assert exit_status([MET, SLOW]) == 0
    assert exit_status([MET, SLOW, LOST]) == 1
    assert table([MET, SLOW]).splitlines()[2:] == [
        "| wrong answers | 0 | 0 | PASS |",
        "| growth | at most 1.05x | 1.2x | MISS |",
    ]


def test_a_section_is_replaced_and_nothing_around_it(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- begin soak -->\nold\n<!-- end soak -->\nafter\n")
    replace_section(document, "soak", "new \\1")
    assert document.read_text() == (
        "before\n<!-- begin soak -->\nnew \\1\n<!-- end soak -->\nafter\n"
    )
    with pytest.raises(ValueError, match="begin fuzz"):
        replace_section(document, "fuzz", "new")

"""Targets beside what was found: PASS or MISS, as a table and as a section of a document."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """One target. `grave`: a miss is a defect on any machine, however busy."""

    name: str
    asked: str
    found: str
    met: bool
    grave: bool = False

    @property
    def verdict(self) -> str:
        """PASS or MISS."""
        return "PASS" if self.met else "MISS"


def table(targets: Sequence[Target]) -> str:
    """The targets in Markdown."""
    lines = ["| target | asked | found | |", "|---|---|---|---|"]
    lines += [f"| {t.name} | {t.asked} | {t.found} | {t.verdict} |" for t in targets]
    return "\n".join(lines)


def exit_status(targets: Sequence[Target]) -> int:
    """0 unless a grave target was missed."""
    return int(any(t.grave and not t.met for t in targets))


def machine() -> dict[str, object]:
    """Where and on what figures were taken."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("headrace", "grpcio", "torch")},
    }


def replace_section(document: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: the document lacks them.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", document.read_text())
    if count != 1:
        raise ValueError(f"{document}: expected one section {begin} ... {end}, got {count}")
    document.write_text(replaced)

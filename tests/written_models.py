"""Writes models in Python into a repository, for tests that serve them."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write_model(repository: Path, name: str, source: str, config: str = "") -> None:
    """Write `repository/name/1/model.py`, and a config.pbtxt if one is given."""
    write_version(repository, name, 1, source)
    if config:
        (repository / name / "config.pbtxt").write_text(config)


def write_version(repository: Path, name: str, version: int, source: str) -> None:
    """Write, or put in its place at once, `repository/name/version/model.py`."""
    directory = repository / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / ".model.py"
    unfinished.write_text(textwrap.dedent(source))
    unfinished.replace(directory / "model.py")

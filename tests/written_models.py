"""Writes models in Python into a repository, for tests that serve them."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write_model(repository: Path, name: str, source: str, config: str = "") -> None:
    """Write `repository/name/1/model.py`, and a config.pbtxt if one is given."""
    directory = repository / name / "1"
    directory.mkdir(parents=True)
    (directory / "model.py").write_text(textwrap.dedent(source))
    if config:
        (repository / name / "config.pbtxt").write_text(config)

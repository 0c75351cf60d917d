"""A short run of `make demo`: it builds, serves, and finds every answer right."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.demo import main

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("torch_threads")]


def test_a_newcomer_sees_that_every_answer_is_right(
    example_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--repository", str(example_repository), "--rounds", "1", "--sentences", "20"]
    assert main(chosen) == 0
    shown = capsys.readouterr().out
    assert "0 of 450 predictions differ" in shown
    assert "0 of 23 embeddings differ" in shown
    assert "the server stopped with exit code 0" in shown
    assert "all right" in shown

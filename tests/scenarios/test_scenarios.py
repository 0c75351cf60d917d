"""Every `*.txt` beside this file is played; `pytest tests/scenarios --rewrite` writes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenario_player import play

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_the_scheduler_does_what_the_scenario_says(
    path: Path, request: pytest.FixtureRequest
) -> None:
    said = path.read_text()
    done = play(said)
    if request.config.getoption("--rewrite"):
        path.write_text(done)
    else:
        assert done.splitlines() == said.splitlines()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("scheduler max_size=4", "unknown scheduler options"),
        ("submit 1", "expected 't=SECONDS EVENT"),
        ("t=0.000 dance", "unknown event dance"),
        ("t=0.000 submit 1 colour=red", "unknown options"),
    ],
)
def test_a_line_that_means_nothing_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        play(text)

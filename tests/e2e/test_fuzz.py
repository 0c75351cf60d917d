"""Some hundreds of the requests of `make fuzz`; and what it broke once, sent again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.fuzz.__main__ import main
from bench.fuzz.cases import Case, Socket, Stream, Unary, write_cases
from bench.fuzz.mutations import INFER, METHODS, PREFACE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GARBAGE = b"\xff\xff\xff"


def test_spoilt_requests_break_nothing(tmp_path: Path) -> None:
    found, failure = tmp_path / "fuzz.json", tmp_path / "failure.json"
    arguments = ("--requests", "600", "--json", str(found), "--failure", str(failure))
    assert main(arguments) == 0, failure.read_text()
    fuzz = json.loads(found.read_text())
    assert fuzz["requests"] >= 600
    assert fuzz["canary_answers"] > 0
    assert fuzz["ends"]["ok"] > 0


def test_cases_that_were_written_down_are_sent_again(tmp_path: Path) -> None:
    cases: list[Case] = [
        Unary(INFER, GARBAGE),
        Stream((b"", GARBAGE), cancel_after=1),
        *(Unary(method, GARBAGE, timeout_s=0.3) for method in METHODS),
        Socket(PREFACE + GARBAGE),
    ]
    write_cases(tmp_path / "cases.json", cases)
    assert main(["--replay", str(tmp_path / "cases.json")]) == 0

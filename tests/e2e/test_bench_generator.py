"""A short run of `make bench-generator`: two processes of it, against an echo."""

from __future__ import annotations

import re
import sys

import pytest
from bench.generator import main

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read from /proc"),
]

LINE = re.compile(r" *(\d+) in flight +([\d,]+)/s .* (\d+) us of CPU per request")


def test_every_concurrency_is_driven_and_paid_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--concurrency", "1", "8", "--processes", "2", "--seconds", "0.6"]) == 0
    found = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert [step and step[1] for step in found] == ["1", "8"]
    for step in found:
        assert step
        assert int(step[2].replace(",", "")) > 0
        assert int(step[3]) > 0

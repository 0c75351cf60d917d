"""Reads single samples from a real server's metrics page."""

from __future__ import annotations

import re
import time
import urllib.request

from headrace_server.testing import ServerProcess


def metric(server: ServerProcess, sample: str) -> float:
    """The value of a sample, whatever the order of its labels in the exposition; 0 for none.

    Batches are counted once their answers are on their way, so a page that was asked for by
    whoever has an answer may come without it: see `until_metric`.
    """
    name, labels = re.fullmatch(r"(\w+)\{(.*)\}", sample).groups()  # type: ignore[union-attr]
    wanted = set(labels.split(","))
    with urllib.request.urlopen(server.metrics_url) as page:
        for line in page.read().decode().splitlines():
            match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
            if match and match[1] == name and set(match[2].split(",")) == wanted:
                return float(match[3])
    return 0.0


def until_metric(server: ServerProcess, sample: str, value: float, seconds: float = 10.0) -> None:
    """Wait until a sample has the value; it may not get past it."""
    by = time.monotonic() + seconds
    while (read := metric(server, sample)) != value:
        assert read < value, f"{sample} is {read}, expected {value}"
        assert time.monotonic() < by, f"{sample} is {read} still, expected {value}"
        time.sleep(0.01)

"""Reads single samples from a real server's metrics page."""

from __future__ import annotations

import re
import urllib.request

from headrace_server.testing import ServerProcess


def metric(server: ServerProcess, sample: str) -> float:
    """The value of a sample, whatever the order of its labels in the exposition; 0 for none."""
    name, labels = re.fullmatch(r"(\w+)\{(.*)\}", sample).groups()  # type: ignore[union-attr]
    wanted = set(labels.split(","))
    with urllib.request.urlopen(server.metrics_url) as page:
        for line in page.read().decode().splitlines():
            match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
            if match and match[1] == name and set(match[2].split(",")) == wanted:
                return float(match[3])
    return 0.0

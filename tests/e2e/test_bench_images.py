"""A short run of `make bench-images`, so that it does not rot."""

from __future__ import annotations

import pytest
from bench.images import IMAGE, Payload, bench, report

from shared_memory import DIRECTORY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm"),
]


def test_images_are_answered_both_ways() -> None:
    payloads = (Payload("image", IMAGE), Payload("back", (1 << 16,), whole=True))
    runs = bench(payloads, in_flight=(1, 4), rounds=1, seconds=0.2)
    assert [(run.payload, run.in_flight, run.way) for run in runs] == [
        (payload, in_flight, way)
        for payload in ("image", "back")
        for in_flight in (1, 4)
        for way in ("plain", "shared")
    ]
    assert all(run.calls >= run.in_flight and run.calls_per_s > 0 for run in runs)
    assert report(runs).count("shared memory: ") == 4

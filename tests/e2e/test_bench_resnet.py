"""A short run of `make bench-resnet`, on small images: all servers meet the same arrivals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.resnet import CLOSED, POLICIES, Call, main, one_by_one

from headrace.answers import Timing

pytestmark = pytest.mark.e2e


def test_all_servers_are_measured_at_every_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "resnet.json"
    small = ("--size", "32", "--loads", "0.5", "--rounds", "2", "--seconds", "0.5")
    assert main([*small, "--json", str(file)]) == 0
    runs = json.loads(file.read_text())
    first, *others = POLICIES
    assert [(run["round"], run["load"], run["policy"]) for run in runs] == [
        (number, load, policy)
        for number, turns in enumerate(([first, *others], [*others, first]))
        for load in (0.0, 0.5)
        for policy in turns
    ]
    assert all(run["images_per_s"] > 0 for run in runs)
    assert all(run["mean_ms"] > 0 and run["p99_ms"] > 0 for run in runs)
    # The arrivals of an open loop are the same for all, and all of them are answered.
    offered = {(run["round"], run["images_per_s"]) for run in runs if run["load"]}
    assert len(offered) == 2
    for run in runs:
        assert run["single_ms"] > 0
        if run["load"] and run["policy"] != first:
            assert run["one_by_one_ms"] > 0
            # Of two that are the same, the slower one would be faster at the speed of both.
            (beside,) = (
                other["single_ms"]
                for other in runs
                if (other["round"], other["load"]) == (run["round"], run["load"])
                and other["policy"] in set(others) - {run["policy"]}
            )
            slower = run["single_ms"] > beside
            assert run["elsewhere_ms"] > 0
            assert (run["elsewhere_ms"] < run["one_by_one_ms"]) == slower
    shown = capsys.readouterr().out
    assert f"{CLOSED} in flight  learned over no batching" in shown
    assert f"{CLOSED} in flight  no batching over the same" in shown


def test_one_by_one_is_what_a_queue_at_the_speed_of_single_rows_makes_of_the_same_arrivals() -> (
    None
):
    calls = [
        Call(0.0, 1.5, Timing(1, queue_s=0.0, compute_s=1.0)),
        Call(0.5, 2.9, Timing(2, queue_s=0.5, compute_s=1.9)),
        Call(0.6, 2.8, Timing(2, queue_s=0.4, compute_s=1.9)),
    ]
    # They end after 1, 2 and 3 seconds, and half a second more is spent on the way.
    assert one_by_one(calls) == pytest.approx((1.0 + 1.5 + 2.4) / 3 + 0.5)
    # Twice as fast, after 0.5, 1 and 1.5 seconds.
    assert one_by_one(calls, slower=2.0) == pytest.approx((0.5 + 0.5 + 0.9) / 3 + 0.5)
    assert one_by_one(calls[1:]) is None

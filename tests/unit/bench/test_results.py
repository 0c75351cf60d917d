"""When a step holds still, what its figures are, and what a reader is warned of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headrace.answers import BatchStatistics, Duration, ModelStatistics
from headrace_server.bench.plan import ClosedLoop
from headrace_server.bench.results import (
    Generation,
    Step,
    Window,
    agree,
    distribution,
    send_lag_s,
    window_of,
    work_between,
)

NOTHING = Duration(0, 0)


def windows(*pairs: tuple[float, float]) -> list[Window]:
    return [Window(throughput, p99_s) for throughput, p99_s in pairs]


def test_windows_agree_when_the_last_three_are_alike() -> None:
    assert agree(windows((50, 0.5), (100, 0.010), (102, 0.0101), (98, 0.0099)), 0.05)


@pytest.mark.parametrize(
    "differing",
    [
        windows((100, 0.01), (100, 0.01)),
        windows((100, 0.01), (100, 0.01), (106, 0.01)),
        windows((100, 0.01), (100, 0.011), (100, 0.01)),
        windows((0, math.nan), (0, math.nan), (0, math.nan)),
    ],
    ids=["too few", "throughput", "p99", "nothing answered"],
)
def test_windows_that_are_few_or_differ_do_not_agree(differing: list[Window]) -> None:
    assert not agree(differing, 0.05)


def test_a_window_counts_answers_by_the_second() -> None:
    assert window_of(np.full(50, 0.25, np.float32), 0.5) == Window(100.0, 0.25)
    empty = window_of(np.empty(0, np.float32), 0.5)
    assert empty.throughput == 0
    assert math.isnan(empty.p99_s)


def test_percentiles_are_exact() -> None:
    latency = distribution(np.arange(1001, dtype=np.float32))
    assert (latency.p50_s, latency.p90_s, latency.p99_s) == (500, 900, 990)
    assert (latency.p999_s, latency.max_s, latency.mean_s) == pytest.approx((999, 1000, 500))
    assert math.isnan(distribution(np.empty(0, np.float32)).p50_s)


def counted(version: str, requests: int, batches: dict[int, int]) -> ModelStatistics:
    """Each request has waited 2 ms and each batch took 5 ms."""
    executions = sum(batches.values())
    return ModelStatistics(
        name="m",
        version=version,
        last_inference_ms=0,
        inference_count=sum(rows * count for rows, count in batches.items()),
        execution_count=executions,
        success=Duration(requests, 0),
        fail=NOTHING,
        queue=Duration(requests, requests * 2_000_000),
        compute_input=NOTHING,
        compute_infer=Duration(requests, requests * 5_000_000),
        compute_output=NOTHING,
        cache_hit=NOTHING,
        cache_miss=NOTHING,
        batch_stats=tuple(
            BatchStatistics(rows, NOTHING, Duration(count, count * 5_000_000), NOTHING)
            for rows, count in batches.items()
        ),
    )


def test_server_work_is_what_was_added_over_all_versions() -> None:
    before = [counted("1", 10, {1: 10})]
    after = [counted("1", 18, {1: 10, 8: 1}), counted("2", 2, {2: 1})]
    work = work_between(before, after)
    assert work is not None
    assert work.batch_rows == 5.0
    assert work.batches == {2: 1, 8: 1}
    assert work.mean_queue_s == pytest.approx(0.002)
    assert work.mean_compute_s == pytest.approx(0.005)


def test_server_work_is_unknown_where_nothing_ran_or_counting_began_anew() -> None:
    ran = [counted("1", 10, {1: 10})]
    assert work_between(ran, ran) is None
    assert work_between(ran, [counted("1", 20, {2: 10, 1: 5})]) is None


def step(**given: Any) -> Step:
    settings: dict[str, Any] = {
        "load": ClosedLoop(1),
        "throughput": 100.0,
        "latency": distribution(np.full(10, 0.02, np.float32)),
        "requests": 10,
        "errors": {},
        "windows": (),
        "measured_s": 1.0,
        "stable": True,
        "generation": Generation(0.5, 0.0),
        "server": None,
    }
    return Step(**{**settings, **given})


@pytest.mark.parametrize(
    ("given", "marks"),
    [
        ({}, ()),
        ({"stable": False}, ("unstable",)),
        ({"interrupted": True}, ("interrupted",)),
        ({"generation": Generation(0.95, 0.0)}, ("busy",)),
        ({"generation": Generation(0.5, 0.0015)}, ()),  # next to 20 ms nobody sees it
        ({"generation": Generation(0.5, 0.0025)}, ("late",)),
    ],
)
def test_a_step_is_marked_with_what_its_reader_must_know(
    given: dict[str, Any], marks: tuple[str, ...]
) -> None:
    assert step(**given).marks == marks


@pytest.mark.parametrize(("concurrency", "processes"), [(1, 3), (7, 3), (64, 5)])
def test_processes_share_the_callers_evenly(concurrency: int, processes: int) -> None:
    load = ClosedLoop(concurrency)
    shares = [load.share(index, processes).concurrency for index in range(processes)]
    assert sum(shares) == concurrency
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("late", "of", "lag_s"),
    [(2, 2, 0.0), (2, 6, 0.001), (3, 6, 0.5), (2, 250, 0.001), (3, 250, 0.5), (5, 500, 0.001)],
)
def test_two_late_sends_are_chance_and_so_is_one_of_a_hundred(
    late: int, of: int, lag_s: float
) -> None:
    lags_s = np.full(of, 0.001, np.float32)
    lags_s[:late] = 0.5
    assert send_lag_s(lags_s) == pytest.approx(lag_s)


def test_what_was_offered_counts_what_failed_and_nothing_where_nothing_was_measured() -> None:
    assert step(requests=30, measured_s=1.5).offered == 20.0
    assert step(requests=0, measured_s=0.0).offered == 0.0

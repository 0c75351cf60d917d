"""Arrivals have the rate and the burstiness asked for, and split over processes without a seam."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from headrace_server.bench.arrivals import Arrivals, Renewal, Trace, due_times


def gaps(arrivals: Arrivals, rate: float = 1.0, count: int = 50_000, seed: int = 0) -> np.ndarray:
    return np.diff(list(islice(due_times(arrivals, rate, seed), count)))


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_renewal_has_the_rate_and_the_coefficient_of_variation(cv: float) -> None:
    drawn = gaps(Renewal(cv), rate=200.0)
    assert drawn.mean() == pytest.approx(1 / 200, rel=0.05)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)


def test_coefficient_of_variation_1_is_a_poisson_process() -> None:
    times = np.array(list(islice(due_times(Renewal(1.0), 100.0, 7), 20_000)))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.mean() == pytest.approx(100, rel=0.05)
    assert counts.var() == pytest.approx(100, rel=0.3)  # as many as the mean


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_send_exactly_what_one_would(processes: int) -> None:
    def times() -> list[float]:
        return list(islice(due_times(Renewal(2.0), 50.0, 3, start_s=10.0), 600))

    shares = [list(islice(times(), index, None, processes)) for index in range(processes)]
    assert sorted(time for share in shares for time in share) == times()
    assert times()[0] > 10.0


def test_a_trace_is_replayed_at_its_own_rate_and_starts_over() -> None:
    trace = Trace([100.0, 100.5, 102.0])
    assert trace.rate == 1.0
    times = list(islice(due_times(trace, trace.rate, 0), 7))
    assert times == pytest.approx([0.5, 2.0, 3.0, 3.5, 5.0, 6.0, 6.5])


def test_a_trace_is_scaled_to_another_rate() -> None:
    times = list(islice(due_times(Trace([0.0, 0.5, 2.0]), 10.0, 0), 3))
    assert times == pytest.approx([0.05, 0.2, 0.3])


@pytest.mark.parametrize("times", [[], [1.0], [2.0, 1.0], [1.0, 1.0], [0.0, float("nan")]])
def test_times_that_do_not_ascend_are_no_trace(times: list[float]) -> None:
    with pytest.raises(ValueError, match="trace"):
        Trace(times)


@pytest.mark.parametrize("cv", [1e-170, 1e-160, 1e-8])
def test_next_to_no_burstiness_is_a_metronome(cv: float) -> None:
    assert gaps(Renewal(cv), rate=1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("cv", [-1.0, 1e200, float("inf"), float("nan")])
def test_a_burstiness_that_makes_no_sense_is_refused(cv: float) -> None:
    with pytest.raises(ValueError, match="coefficient of variation from 0 to 1000"):
        Renewal(cv)

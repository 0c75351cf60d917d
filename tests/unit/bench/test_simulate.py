"""The simulator against what is known: closed forms, brute force, and the scheduler itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations, pairwise
from random import Random
from statistics import fmean, pstdev

import pytest
from bench.simulate import bounds, static
from bench.simulate.arrivals import PROCESSES, recorded
from bench.simulate.callers import ClosedLoop
from bench.simulate.capacity import LOWEST, RUNGS, Shares, best_settings, duel
from bench.simulate.points import FITTED, ROUND, Point
from bench.simulate.profiles import PROFILES, TEXT, Profile
from bench.simulate.world import play, simulate
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.core.adaptive import AdaptivePolicy
from headrace_server.core.policy import StaticPolicy, StaticSettings
from headrace_server.core.queue import QueueLimits
from headrace_server.core.request import Request

GPU = PROFILES["gpu"]


def linear(base_s: float, row_s: float, most_rows: int = 8) -> Profile:
    return Profile("linear", most_rows, lambda rows, length: base_s + row_s * rows)


# -- arrivals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_ascend_at_one_per_second(process: str) -> None:
    means = []
    for seed in range(5):
        moments = PROCESSES[process](20_000, Random(seed))
        assert len(moments) == 20_000
        assert moments == sorted(moments)
        means.append(moments[-1] / len(moments))
    assert fmean(means) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("cv2", 2.0), ("cv4", 4.0)])
def test_gaps_vary_as_much_as_they_should(process: str, cv: float) -> None:
    moments = PROCESSES[process](100_000, Random(0))
    gaps = [b - a for a, b in pairwise(moments)]
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.05)


def test_diurnal_arrivals_swing_twice_in_a_run() -> None:
    moments = PROCESSES["diurnal"](40_000, Random(0))
    eighths = [0] * 8
    for moment in moments:
        eighths[min(7, int(8 * moment / moments[-1]))] += 1
    high, low = eighths[0] + eighths[1] + eighths[4] + eighths[5], sum(eighths[2:4] + eighths[6:8])
    assert high > 1.5 * low


def test_replayed_arrivals_are_as_bursty_as_the_recording() -> None:
    recording = recorded()
    assert recording == sorted(recording)
    assert len(recording) > 300
    moments = PROCESSES["replayed"](len(recording), Random(0))
    gaps = [b - a for a, b in pairwise(moments)]
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(4.2, rel=0.03)


# -- the world ------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_at_a_time_waits_as_long_as_theory_says(load: float) -> None:
    """Pollaczek and Khinchine: with deterministic service, rho / (2 (1 - rho)) services."""
    waits = []
    for seed in range(3):
        outcome = simulate(
            StaticPolicy(StaticSettings(1)),
            [t / load for t in PROCESSES["poisson"](15_000, Random(seed))],
            linear(0.75, 0.25, most_rows=1),
            workers=1,
            objective_s=math.inf,
        )
        waits.append(fmean(outcome.latencies_s) - 1.0)
    assert fmean(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.04)


@given(
    process=st.sampled_from(sorted(PROCESSES)),
    load=st.floats(0.2, 2.0),
    workers=st.integers(1, 4),
    objective=st.sampled_from([1.5, 4.0, 10.0, math.inf]),
    noise=st.sampled_from([0.0, 0.2]),
    cap=st.sampled_from([3, 1_000]),
    seed=st.integers(0, 1_000),
)
def test_every_request_is_answered_or_refused(
    process: str,
    load: float,
    workers: int,
    objective: float,
    noise: float,
    cap: int,
    seed: int,
) -> None:
    costs = GPU.noisy(noise)
    rate = load * bounds.capacity(costs, workers=workers, objective_s=0.025)
    outcome = simulate(
        AdaptivePolicy(costs.most_rows, costs.sweep()),
        [t / rate for t in PROCESSES[process](150, Random(seed))],
        costs,
        workers=workers,
        objective_s=objective * costs.duration_s(1, 0),
        limits=QueueLimits(max_requests=cap),
        seed=seed,
    )
    assert outcome.offered == 150 == outcome.on_time + outcome.late + outcome.refused
    assert sum(outcome.batch_rows) == len(outcome.latencies_s) == outcome.on_time + outcome.late
    assert min(outcome.latencies_s, default=1.0) > 0


class WatchedLoop(ClosedLoop):
    """Counts who waits for an answer."""

    waiting = most_waiting = 0

    def send(self) -> Request:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        return super().send()

    def answered(self, request: Request, now: float) -> None:
        self.waiting -= 1
        super().answered(request, now)


@given(callers=st.integers(1, 40), turn_s=st.sampled_from([0.0, 0.001]), seed=st.integers(0, 1_000))
def test_callers_of_a_closed_loop_wait_for_their_answers(
    callers: int, turn_s: float, seed: int
) -> None:
    loop = WatchedLoop(callers, partial(TEXT.draw_length, Random(seed)), turn_s=turn_s, end_s=2.0)
    policy = AdaptivePolicy(TEXT.most_rows, TEXT.sweep())
    outcome = play(policy, loop, TEXT, workers=1)
    assert loop.waiting == 0
    assert loop.most_waiting <= callers
    assert outcome.offered == outcome.on_time == len(outcome.latencies_s)
    # Little's law: callers wait for their answers, but for their turns.
    in_flight = sum(loop.latencies_s) / 2.0
    assert in_flight <= callers
    assert in_flight + len(loop.latencies_s) * callers * turn_s / 2.0 >= 0.7 * callers


def test_callers_take_turns_one_after_the_other_until_the_end() -> None:
    loop = ClosedLoop(3, lambda: 7, turn_s=1.0, end_s=8.0)
    sent = []
    for due_s in (1.0, 2.0, 3.0):
        assert loop.next_s == due_s
        sent.append(loop.send())
    assert loop.next_s == math.inf
    assert [(r.arrival_s, r.deadline_s, r.length) for r in sent] == [
        (due_s, math.inf, 7) for due_s in (1.0, 2.0, 3.0)
    ]
    for request in sent:
        loop.answered(request, 5.0)
    assert loop.latencies_s == [4.0, 3.0, 2.0]
    again = [loop.next_s, loop.send().arrival_s, loop.next_s, loop.send().arrival_s]
    assert again == [6.0, 6.0, 7.0, 7.0]
    assert loop.next_s == math.inf  # the third turn would end at the end
    loop.answered(sent[0], 8.5)
    assert len(loop.latencies_s) == 3


def test_one_caller_alone_pays_for_turn_hop_and_batch() -> None:
    loop = ClosedLoop(1, lambda: 18, turn_s=0.001, end_s=10.0)
    play(StaticPolicy(StaticSettings(1)), loop, TEXT, workers=1)
    latency_s = TEXT.hop_s + TEXT.duration_s(1, 18)
    assert loop.latencies_s == pytest.approx([latency_s] * int(10.0 / (latency_s + 0.001)))


# -- the rival ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("profile", "process", "load", "objective"),
    [("gpu", "poisson", 0.7, 4.08), ("gpu", "cv2", 1.2, 4.08), ("text", "poisson", 0.5, 10.0)],
)
def test_lean_rival_serves_exactly_whom_the_scheduler_serves(
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    profile: str,
    process: str,
    load: float,
    objective: float,
) -> None:
    # The scheduler stages full batches, whose members can then no longer expire or make room.
    monkeypatch.setattr("headrace_server.core.fleet.STAGES", 1)
    point = Point(profile, process, workers, objective, 250)
    kinds = point.fixed_settings().values()
    assert all(len(choices) >= 80 for choices in kinds)
    for settings in {settings for choices in kinds for settings in choices}:
        outcome = simulate(
            StaticPolicy(StaticSettings(settings.size, max_delay_s=settings.delay_s)),
            point.arrivals(load, 0),
            point.costs,
            workers=workers,
            objective_s=point.objective_s,
            limits=QueueLimits(max_requests=settings.cap),
            lengths=point.lengths(0),
        )
        assert outcome.on_time_share == point.rival(settings, load, 0), settings


def test_rival_is_the_best_of_all_settings() -> None:
    point = Point("gpu", "poisson", 2, 4.08, 400)
    seeds = range(2)
    choices = point.fixed_settings()[ROUND]
    loads = {
        settings: Shares(partial(point.rival, settings)).capacity(seeds) or 0.0
        for settings in choices
    }
    ranking = sorted(loads.values(), reverse=True)
    finalists = best_settings(point, choices, seeds, 3)
    assert [loads[settings] for settings in finalists] == pytest.approx(ranking[:3], rel=0.02)


# -- bounds ---------------------------------------------------------------------------------------


def most_by_brute_force(
    arrivals: Sequence[float], costs: Profile, workers: int, objective_s: float
) -> int:
    """Tries every batch of every subset, whenever the first worker is free."""
    count = len(arrivals)
    batches = [b for rows in range(1, count + 1) for b in combinations(range(count), rows)]

    @cache
    def most(left: int, free_s: tuple[float, ...]) -> int:
        best = 0
        for batch in batches:
            members = sum(1 << i for i in batch)
            start_s = max(free_s[0], arrivals[batch[-1]] + costs.hop_s)
            end_s = start_s + costs.duration_s(len(batch), 0)
            if members & ~left or end_s > arrivals[batch[0]] + objective_s:
                continue
            later = most(left & ~members, tuple(sorted((end_s, *free_s[1:]))))
            best = max(best, len(batch) + later)
        return best

    return most((1 << count) - 1, (0.0,) * workers)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[list[float], Profile, float]:
    """Up to six arrivals, what batches cost, an objective."""
    tenths = st.integers(0, 60)
    arrivals = sorted(draw(st.lists(tenths, min_size=1, max_size=6)))
    costs = linear(draw(st.integers(1, 20)) / 10, draw(st.integers(0, 10)) / 10, 6)
    costs = replace(costs, hop_s=draw(st.integers(0, 5)) / 10)
    return [t / 10 for t in arrivals], costs, draw(st.integers(5, 80)) / 10


@given(small_cases())
def test_optimum_of_one_worker_is_what_brute_force_finds(
    case: tuple[list[float], Profile, float],
) -> None:
    arrivals, costs, objective_s = case
    found = bounds.most_on_time(arrivals, costs, workers=1, objective_s=objective_s)
    assert found == most_by_brute_force(arrivals, costs, 1, objective_s)


@given(small_cases(), st.integers(2, 3))
def test_nothing_on_several_workers_beats_the_bound(
    case: tuple[list[float], Profile, float], workers: int
) -> None:
    arrivals, costs, objective_s = case
    bound = bounds.most_on_time(arrivals, costs, workers=workers, objective_s=objective_s)
    assert bound >= most_by_brute_force(arrivals, costs, workers, objective_s)


@given(
    process=st.sampled_from(["poisson", "cv2", "cv4"]),
    load=st.floats(0.3, 1.6),
    workers=st.integers(1, 4),
    objective=st.sampled_from([1.5, 2.5, 4.08, 10.0]),
    seed=st.integers(0, 1_000),
)
def test_nobody_beats_the_bound(
    process: str, load: float, workers: int, objective: float, seed: int
) -> None:
    point = Point("gpu", process, workers, objective, 150)
    bound = point.bound(load, seed)
    assert point.ours(load, seed).on_time_share <= bound
    assert point.immediate(load, seed).on_time_share <= bound
    settings = static.Settings(9, 0.0, static.NO_CAP)
    assert point.rival(settings, load, seed) <= bound


def test_no_bound_is_told_where_lengths_differ() -> None:
    point = Point("text", "poisson", 1, 20.0, 100)
    assert not point.has_bound
    with pytest.raises(ValueError, match="no bound is known"):
        point.bound(0.5, 0)
    assert Point("gpu", "poisson", 1, 4.08, 100).has_bound


def test_ceiling_is_what_arrives_until_workers_are_full() -> None:
    ceiling = partial(bounds.ceiling, GPU, workers=2, objective_s=0.025)
    assert ceiling(100.0) == 100.0
    assert ceiling(1e9) == pytest.approx(2 * 18.9 / GPU.duration_s(19, 0), rel=0.02)


# -- capacity -------------------------------------------------------------------------------------


def test_capacity_is_where_the_mean_share_crosses() -> None:
    # On time 99 % where load + luck is 0.8; the luck of the seeds is 0.0, 0.1 and 0.2.
    shares = Shares(lambda load, seed: 1.0 - (load + 0.1 * seed) / 80)
    assert shares.capacity([0]) == pytest.approx(0.8, rel=1e-3)
    assert shares.capacity([0, 1, 2]) == pytest.approx(0.7, rel=1e-3)
    assert shares.capacity([2]) == pytest.approx(0.6, rel=1e-3)
    assert Shares(lambda load, seed: 1.0 - load / 80, near=0.1).capacity([0]) == pytest.approx(
        0.8, rel=1e-3
    )


def test_capacity_ends_with_the_ladder_and_may_not_exist() -> None:
    assert Shares(lambda load, seed: 1.0).capacity([0]) == pytest.approx(LOWEST * 1.02**RUNGS)
    assert Shares(lambda load, seed: 0.9).capacity([0]) is None


def test_a_capacity_is_the_same_whatever_was_asked_meanwhile() -> None:
    def run(load: float, seed: int) -> float:
        dips = seed == 0 and 0.2 < load < 0.5
        return 0.98 if dips or load > 0.8 else 1.0

    shares = Shares(run, near=0.1)
    first = shares.capacity([0])
    assert first == pytest.approx(0.2, rel=0.03)
    assert shares.capacity([1]) == pytest.approx(0.8, rel=0.03)
    assert shares.capacity([0]) == first
    assert Shares(run, near=0.7).capacity([0]) == pytest.approx(0.8, rel=0.03)


def test_duel_tells_ours_from_the_rival_with_an_interval() -> None:
    point = Point("gpu", "poisson", 1, 4.08, 400)
    found = duel(point, seeds=range(4), tuning_seeds=range(100, 102), finalists=2)
    assert found.ours is not None
    assert found.bound is not None
    assert found.ours <= 1.05 * found.bound
    for rival in found.rivals.values():
        assert rival.capacity is not None
        assert rival.ratio is not None
        assert rival.low is not None
        assert rival.high is not None
        assert rival.capacity <= 1.05 * found.bound
        assert rival.low < rival.ratio < rival.high
        assert rival.ratio == pytest.approx(found.ours / rival.capacity)


def test_point_that_nobody_carries_has_no_ratio() -> None:
    point = Point("gpu", "cv4", 1, 2.5, 400)
    found = duel(point, seeds=range(2), tuning_seeds=range(100, 101), finalists=2)
    assert found.ours is None
    assert [rival.capacity for rival in found.rivals.values()] == [None, None]
    assert found.rivals[FITTED].ratio is None


@pytest.mark.parametrize("workers", [1, 8])
def test_overload_costs_no_goodput(workers: int) -> None:
    point = Point("gpu", "poisson", workers, 4.08, 1_500)
    full, over = (load * point.ours(load, 0).on_time_share for load in (1.0, 1.5))
    assert over >= 0.95 * full
    assert over * point.rate >= 0.9 * point.ceiling(1.5)

"""What was promised of the learned policy, beside what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from bench.simulate.decisions import DecisionTimes
from bench.simulate.foresight import Standing
from bench.simulate.mixtures import ALONE, AT_ONCE, IN_FLIGHT, SETUPS, Minority, Mixtures, Setup
from bench.simulate.points import FITTED, ROUND
from bench.simulate.study import FULL, HEADLINE, HEAVIEST, HEAVY, Finding, Study

BURSTY = ("cv2", "cv4")

SENTENCES = ((16, 2.0, 1.4), (64, 2.8, 1.5), (256, 3.2, 1.6))
"""In flight, and what is asked over first come, first served and over no batching."""


@dataclass(frozen=True, slots=True)
class Case:
    """One value that a target speaks of; `possible` is one that nobody can exceed, where such a
    bound is known."""

    where: str
    value: float
    headline: bool = True
    possible: float = math.inf


@dataclass(frozen=True, slots=True)
class Target:
    """A promise: every case is at least, or at most, what is asked."""

    name: str
    asked: float
    cases: Sequence[Case]
    at_most: bool = False
    unit: str = ""

    def met(self, case: Case) -> bool:
        """Whether this case keeps it."""
        return case.value <= self.asked if self.at_most else case.value >= self.asked

    @property
    def possible(self) -> list[Case]:
        """The cases that somebody who knew the future might keep."""
        return [case for case in self.cases if case.possible >= self.asked or self.met(case)]

    @property
    def missed(self) -> list[Case]:
        """The cases that do not keep it."""
        return [case for case in self.cases if not self.met(case)]

    def worst(self, *, headline: bool = False) -> Case | None:
        """The case farthest on the wrong side; None when there is none."""
        cases = [case for case in self.cases if case.headline or not headline]
        farthest = max if self.at_most else min
        return farthest(cases, key=lambda case: case.value, default=None)


def targets(
    study: Study,
    findings: Sequence[Finding],
    times: Sequence[DecisionTimes],
    mixtures: Mixtures,
    standings: Sequence[Standing],
) -> list[Target]:
    """All promises. Where neither side keeps 99 % on time at any load, there is no ratio."""
    grid = [f for f in findings if f.shares]

    def ratios(
        wanted: Callable[[Finding], bool], among: Sequence[Finding] = grid, kind: str = ROUND
    ) -> list[Case]:
        chosen = [(f, ratio(f, kind)) for f in among if wanted(f)]
        return [_case(f, value, _most(f, kind)) for f, value in chosen if value is not None]

    def of_ceiling(process: Callable[[str], bool]) -> list[Case]:
        return [
            _case(
                f, *(goodput(study, f, HEAVY, policy) / f.ceiling for policy in ("ours", "bound"))
            )
            for f in grid
            if process(f.point.process)
        ]

    return [
        Target("capacity, 1 worker, Poisson", 1.08, ratios(_is("poisson", 1, 1)), unit="x"),
        Target("capacity, 2 to 8 workers, Poisson", 1.12, ratios(_is("poisson", 2, 8)), unit="x"),
        Target("capacity, CV 2", 1.15, ratios(_is("cv2", 1, 8)), unit="x"),
        Target("capacity, CV 4, 4 workers or more", 1.25, ratios(_is("cv4", 4, 8)), unit="x"),
        Target("capacity, every point of the grid", 0.98, ratios(lambda _: True), unit="x"),
        Target(
            "capacity, every point beside the grid",
            0.98,
            ratios(lambda f: not f.shares, findings),
            unit="x",
        ),
        Target(
            "capacity, every point, against fitted settings",
            0.98,
            ratios(lambda _: True, findings, FITTED),
            unit="x",
        ),
        Target("of the optimum, 1 worker, to load 1", 0.97, _of_optimum(study, grid, 0.0, FULL)),
        Target("of the optimum, 1 worker, load 1.3", 0.94, _of_optimum(study, grid, HEAVY, HEAVY)),
        Target("of the best without foresight, to load 1", 0.97, _of_best(standings, 0.0, FULL)),
        Target("of the best without foresight, load 1.3", 0.94, _of_best(standings, HEAVY, HEAVY)),
        Target(
            "of the fluid ceiling at load 1.3, Poisson",
            0.95,
            of_ceiling(lambda process: process not in BURSTY),
        ),
        Target(
            "of the fluid ceiling at load 1.3, CV 2 and 4", 0.95, of_ceiling(BURSTY.__contains__)
        ),
        Target(
            "goodput at load 1.5 over that at 1",
            0.95,
            [_case(f, goodput(study, f, HEAVIEST) / goodput(study, f, FULL)) for f in grid],
            unit="x",
        ),
        Target(
            "mean latency at load 0.3 over immediate dispatch",
            1.05,
            [_case(f, f.latencies_s["ours"] / f.latencies_s["immediate"]) for f in grid],
            at_most=True,
            unit="x",
        ),
        Target(
            "decision, 1,000 of one size queued, p99",
            50.0,
            [Case(t.queue, t.p99_us) for t in times if "one size" in t.queue],
            at_most=True,
            unit=" us",
        ),
        Target(
            "decision, 1,000 of mixed lengths queued, p99, of the batch",
            0.02,
            [Case(t.queue, t.share_p99) for t in times if "mixed" in t.queue],
            at_most=True,
        ),
        *_of_sentences(mixtures),
        Target(
            "mean latency of a few of another kind over immediate dispatch",
            1.05,
            [_of_few(m, m.few.latency_s / m.few_at_once.latency_s) for m in mixtures.minorities],
            at_most=True,
            unit="x",
        ),
        Target(
            "a few of another kind on time over immediate dispatch",
            0.98,
            [_of_few(m, m.few.on_time / m.few_at_once.on_time) for m in mixtures.minorities],
            unit="x",
        ),
        Target(
            "all on time over immediate dispatch, a few in a hurry",
            1.0,
            [Case(h.where, h.all_over_at_once) for h in mixtures.hurries],
            unit="x",
        ),
    ]


def _of_few(minority: Minority, value: float) -> Case:
    return Case(minority.where, value, headline=False)


def _of_sentences(mixtures: Mixtures) -> list[Target]:
    """What is asked of the real server is asked of the simulated one, too."""

    def cases(value: Callable[[Setup], float]) -> list[Case]:
        return [Case(str(setup), value(setup), headline=False) for setup in SETUPS]

    over = [
        Target(
            f"simulated sentences, {in_flight} in flight, over {policy}",
            asked,
            cases(partial(mixtures.over, policy, in_flight)),
            unit="x",
        )
        for in_flight, *both in SENTENCES
        for policy, asked in zip((AT_ONCE, ALONE), both, strict=True)
    ]
    return [
        *over,
        Target(
            f"simulated sentences, 64 in flight, p99 over {AT_ONCE}",
            0.5,
            cases(partial(mixtures.p99_over, AT_ONCE, 64)),
            at_most=True,
            unit="x",
        ),
        Target(
            "simulated sentences, throughput over the best with fewer in flight",
            0.95,
            cases(lambda setup: min(mixtures.over_fewer(n, setup) for n in IN_FLIGHT[1:])),
            unit="x",
        ),
    ]


def ratio(finding: Finding, kind: str) -> float | None:
    """Our capacity over the rival's: infinite or 0 where one of them has none, None for both."""
    ours, rival = finding.duel.ours, finding.duel.rivals[kind]
    if ours is None and rival.capacity is None:
        return None
    if rival.ratio is None:
        return math.inf if rival.capacity is None else 0.0
    return rival.ratio


def _most(finding: Finding, kind: str) -> float:
    """The ratio that nobody can exceed."""
    bound, rival = finding.duel.bound, finding.duel.rivals[kind].capacity
    return math.inf if bound is None or rival is None else bound / rival


def goodput(study: Study, finding: Finding, load: float, policy: str = "ours") -> float:
    """Requests on time per second."""
    return mean_share(study, finding, policy, load) * load * finding.rate


def mean_share(study: Study, finding: Finding, policy: str, load: float) -> float:
    """Over the seeds."""
    return fmean(finding.shares[policy][study.loads.index(load)])


def _of_optimum(study: Study, grid: Sequence[Finding], lowest: float, highest: float) -> list[Case]:
    return [
        Case(
            f"{where(finding)}, load {load:g}",
            mean_share(study, finding, "ours", load) / mean_share(study, finding, "bound", load),
            finding.point.objective == HEADLINE,
        )
        for finding in grid
        if finding.point.workers == 1
        for load in study.loads
        if lowest <= load <= highest
    ]


def _of_best(standings: Sequence[Standing], lowest: float, highest: float) -> list[Case]:
    return [
        Case(f"{s.process}, 1w, in ticks, load {s.load:g}", s.ours / s.best, headline=False)
        for s in standings
        if lowest <= s.load <= highest
    ]


def where(finding: Finding) -> str:
    """The point in a few words."""
    point = finding.point
    profile = "" if point.profile == "gpu" else f"{point.profile}, "
    return f"{profile}{point.process}, {point.workers}w, {point.objective:g}x"


def _case(finding: Finding, value: float, possible: float = math.inf) -> Case:
    return Case(where(finding), value, finding.point.objective == HEADLINE, possible)


def _is(process: str, fewest: int, most: int) -> Callable[[Finding], bool]:
    return lambda f: f.point.process == process and fewest <= f.point.workers <= most

"""The study as Markdown: targets, capacities, what overload does, how long decisions take."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from bench.simulate.capacity import ON_TIME, Duel
from bench.simulate.decisions import DecisionTimes
from bench.simulate.foresight import ARRIVALS, Standing, Ticks
from bench.simulate.mixtures import (
    FEW,
    HURRIED,
    IN_A_HURRY,
    OBJECTIVE_S,
    OURS,
    PATIENT,
    Hurry,
    Minority,
    Mixtures,
)
from bench.simulate.points import FITTED, ROUND
from bench.simulate.profiles import GPU, HOP_S, TEXT, XEON_TEXT
from bench.simulate.study import FULL, HEADLINE, HEAVIEST, HEAVY, OBJECTIVES, Finding, Study
from bench.simulate.targets import Case, Target, goodput, mean_share, targets, where

NONE = "never"


def report(
    study: Study,
    findings: Sequence[Finding],
    times: Sequence[DecisionTimes],
    mixtures: Mixtures,
    standings: Sequence[Standing],
    pictures: Sequence[Path] = (),
) -> str:
    """All of it."""
    grid = [f for f in findings if f.shares]
    others = [f for f in findings if not f.shares]
    sections = [
        "# Simulation",
        _preface(study),
        "## Targets",
        TARGETS,
        _targets(targets(study, findings, times, mixtures, standings)),
        "## Capacity",
        CAPACITY,
        _capacities(grid),
        "### Other devices and arrivals",
        _capacities(others),
        "## Next to the optimum",
        OPTIMUM,
        _optimum(study, grid),
        "### What foresight is worth",
        _foresight_preface(study.clocked),
        _foresight(standings),
        "## Overload and light load",
        LOADS,
        _loads(study, grid),
        "## Sentences in a closed loop",
        CLOSED,
        _closed(mixtures),
        "## A few of another kind",
        MINORITIES,
        _minorities(mixtures.minorities),
        "## A few in a hurry",
        HURRIES,
        _hurries(mixtures.hurries),
        "## Decisions",
        DECISIONS,
        _decisions(times),
    ]
    if pictures:
        sections += ["## On time against load", *(f"![{p.stem}]({p.name})" for p in pictures)]
    return "\n\n".join(sections) + "\n"


TARGETS = """\
*Possible*: cases in which somebody who knew the future might reach what is asked: with one worker
the exact optimum does, with more an upper bound of it. Where no bound is known (decisions,
latencies, shares of the optimum itself), all cases count as possible."""

CAPACITY = f"""\
The highest load at which {ON_TIME:.0%} of the requests are on time. *Objective* is in durations of
one request alone; load 1 is what workers that start in turn carry with the largest batches that
still leave time to wait for one. Of `text`, where lengths differ, both are of requests of
{TEXT.typical} tokens, the middle of them: nobody carries load 1 of those that come. *Bound* is what
nobody can exceed: with one worker the exact optimum of a scheduler that knows the future, with more
an upper bound of it, both without noise. *Never* means that not even load 0.05 is carried.

Our capacity is set over that of the best fixed settings (size, delay, bound of the queue) of two
kinds. *Round*: the best of at least 80 that people try, powers of two and whole milliseconds.
*Fitted*: the best of 140 shares of what the point carries; to write those down one must have
measured the capacity already, and must do so again when load, model or number of workers change.
Targets are about round settings unless they say otherwise. *Possible* is the bound over round: what
is asked beyond that nobody can do."""

OPTIMUM = "Requests that the learned policy answers on time, as a share of the exact optimum's."

LOADS = """\
*Ceiling*: goodput at load 1.3, as a share of what a fluid of arrivals would allow: it never pauses,
as bursty arrivals do, nor comes at luckily short notice, as they may. *Overload*: goodput at load
1.5 over goodput at load 1. *Latency*: mean at load 0.3 over that of immediate dispatch, of the
requests that are answered."""

CLOSED = f"""\
Sentences as long as those of `make bench-text`, one worker, up to {TEXT.most_rows} in a batch.
`text`: {TEXT.source}.
`text-xeon`: {XEON_TEXT.source}.
A *turn* is the time from an answer to that caller's next request; callers take turns, one after
the other, which decides how many are there when first come, first served forms its next batch.
`text-xeon` with turns of 1.4 ms stands for the machine and the client of `bench-text-xeon.json`.
Sentences per second, and the 99th percentile of the latency."""

MINORITIES = f"""\
Profile `gpu`, an objective of {OBJECTIVE_S * 1e3:g} ms; one request in {FEW} is of a shape that
cannot ride with the others. *Latency* is the mean of those that were answered, over what it is
under immediate dispatch; *on time* is the share of those that came, in brackets under immediate
dispatch. That fills batches of up to {GPU.most_rows}, too long for the objective: it is there to
show whether the few wait for the many, not as a rival."""

HURRIES = f"""\
Profile `gpu`; {IN_A_HURRY:.0%} of the requests have {HURRIED:g} times what one takes alone, the
others {PATIENT:g} times. Load 1 is what is carried where all have the latter. *On time* is the
share of those that came, in brackets under immediate dispatch, as it is of all in the last
column."""

DECISIONS = """\
CPU time of one decision with 1,000 requests queued and load 1.3, the garbage collector off. Of the
batch: the 99th percentile of the share that the decision takes of the batch it is about."""


def _preface(study: Study) -> str:
    requests = [point.requests for point in study.points]
    return f"""\
Written by `make bench-sim`, with Headrace {version("headrace")}, Python
{platform.python_version()} and NumPy {version("numpy")}. Raw data are in `simulation.json`.

The scheduler that serves runs here under an injected clock, on workers whose batches take what a
profile says (`bench/simulate/profiles.py`), with noise where that is said, and which begin a *hop*
of {HOP_S * 1e3:g} ms after the decision, unless they were staged behind a running batch (`mlp` has
no hop). The fixed settings that capacities are set over stage nothing: they bind a batch when a
worker is idle, as today's servers do, which costs them the hop and spares them from closing batches
early. Runs have {min(requests):,} to {max(requests):,} requests, in a full study those of
{OBJECTIVES} objectives at load 1 or more; none of them is left out: the policy knows the durations
of batches from a sweep, as the server does from loading a model, and the rate of arrivals it has to
learn. Everything is a mean over {study.seeds} seeds; all policies get the same arrivals, and a
higher load is the same story told faster.

The fixed settings are tuned at every point on other seeds ({study.tuning_seeds}). The best
{study.finalists} are then judged on the {study.seeds} seeds that count, and the best of these is
the rival. Ratios of capacities carry 95 % confidence intervals: a jackknife over the seeds.

A point such as *cv4, 2w, 10x* is arrivals whose gaps have a coefficient of variation of 4 (gamma),
2 workers, and an objective of 10 times what one request takes alone. *Diurnal* arrivals swing by
half around their mean, with short bursts on top. *Replayed* ones are 45 s of the Azure LLM
inference trace 2023 (CC BY; Patel et al., Splitwise, ISCA 2024), over and over at another speed."""


def _targets(found: Iterable[Target]) -> str:
    rows = []
    for target in found:
        sign = "at most" if target.at_most else "at least"
        missed, cases = len(target.missed), len(target.cases)
        verdict = "-" if not cases else "no" if missed else "yes"
        rows.append(
            (
                target.name,
                f"{sign} {_value(target, target.asked)}",
                _worst(target, target.worst(headline=True)),
                _worst(target, target.worst()),
                f"{cases - missed} of {cases}",
                len(target.possible),
                verdict,
            )
        )
    return _table(
        (
            *("", "asked", f"worst at {HEADLINE:g}x", "worst of all"),
            *("cases that hold", "possible", "holds"),
        ),
        rows,
    )


def _value(target: Target, value: float) -> str:
    if target.unit == "x":
        return f"{value:.3f}x"
    return f"{value:.0f}{target.unit}" if target.unit else f"{value:.1%}"


def _worst(target: Target, case: Case | None) -> str:
    return f"{_value(target, case.value)} ({case.where})" if case else "-"


def _capacities(findings: Iterable[Finding]) -> str:
    rows = []
    for finding in findings:
        point, found = finding.point, finding.duel
        rows.append(
            (
                point.profile,
                point.process,
                point.workers,
                f"{point.objective:g}x, {point.objective_s * 1e3:.3g} ms",
                f"{finding.rate:,.0f}/s",
                _load(found.ours),
                _load(found.bound) if point.has_bound else "-",
                _against(found, ROUND),
                _possible(found),
                found.rivals[ROUND].settings or "-",
                _against(found, FITTED),
                found.rivals[FITTED].settings or "-",
            )
        )
    titles = (
        *("profile", "arrivals", "workers", "objective", "load 1"),
        *("ours", "bound", "over round", "possible", "round is", "over fitted", "fitted is"),
    )
    return _table(titles, rows)


def _against(found: Duel, kind: str) -> str:
    rival = found.rivals[kind]
    if rival.ratio is not None:
        return f"**{rival.ratio:.3f}** ({rival.low:.3f} to {rival.high:.3f})"
    if found.ours is None and rival.capacity is None:
        return "-"
    return "only ours" if rival.capacity is None else "only theirs"


def _possible(found: Duel) -> str:
    rival = found.rivals[ROUND].capacity
    return "-" if found.bound is None or rival is None else f"{found.bound / rival:.3f}"


def _load(load: float | None) -> str:
    return NONE if load is None else f"{load:.3f}"


def _optimum(study: Study, grid: Iterable[Finding]) -> str:
    rows = []
    for finding in grid:
        if finding.point.workers > 1:
            continue
        shares = []
        for load in study.loads:
            ours = mean_share(study, finding, "ours", load)
            shares.append(f"{ours / mean_share(study, finding, 'bound', load):.1%}")
        rows.append((where(finding), *shares))
    return _table(("load", *(f"{load:g}" for load in study.loads)), rows)


def _foresight_preface(problem: Ticks) -> str:
    base, row, patience = problem.base, problem.row, problem.patience
    tick_ms = problem.tick_s * 1e3
    bursts = "\n".join(
        f"In *{b.name}* they come in bursts of {b.length:.1f} on the mean, "
        f"{b.peak:g} times as often as on the mean."
        for b in ARRIVALS
        if b.peak > 1
    )
    return f"""\
The optimum above knows when requests will come. What could be reached without that is known where
what waits can be enumerated (`bench/simulate/foresight.py`): on a clock of ticks of {tick_ms:g} ms,
with at most one arrival in each, and one worker whose batches of b take {base} + {row}b
ticks; requests have {patience}. Value iteration finds the best policy of all, which knows
the rate of arrivals, and where they come in bursts when each begins and ends. Ours has to learn it,
and stages each batch a little before the worker is free, which gains nothing here, where there is
no hop. *Best* and *ours* are shares of what foresight would answer on time.
{bursts}"""


def _foresight(standings: Sequence[Standing]) -> str:
    loads = list(dict.fromkeys(s.load for s in standings))
    rows = []
    for process in dict.fromkeys(s.process for s in standings):
        of_process = [s for s in standings if s.process == process]
        shares = {
            "best": [s.best / s.foreseeing for s in of_process],
            "ours": [s.ours / s.foreseeing for s in of_process],
            "ours, of the best": [s.ours / s.best for s in of_process],
        }
        rows += [(process, name, *map("{:.1%}".format, row)) for name, row in shares.items()]
    return _table(("", "load", *(f"{load:g}" for load in loads)), rows)


def _loads(study: Study, grid: Iterable[Finding]) -> str:
    rows = []
    for finding in grid:
        ours_s, at_once_s = finding.latencies_s["ours"], finding.latencies_s["immediate"]
        overload = goodput(study, finding, HEAVIEST) / goodput(study, finding, FULL)
        rows.append(
            (
                where(finding),
                f"{goodput(study, finding, HEAVY) / finding.ceiling:.1%}",
                f"{overload:.3f}x",
                f"{ours_s / at_once_s:.3f}x",
                f"{ours_s * 1e3:.2f} ms",
            )
        )
    return _table(("", "ceiling", "overload", "latency", "ours"), rows)


def _closed(mixtures: Mixtures) -> str:
    rows = []
    for found in mixtures.closed:
        case = found.policy, found.in_flight, found.setup
        over = p99_over = ""
        if found.policy != OURS:
            over, p99_over = f"{mixtures.over(*case):.2f}x", f"{mixtures.p99_over(*case):.2f}x"
        rate, p99 = f"{found.rate:.1f}", f"{found.p99_s * 1e3:,.0f} ms"
        rows.append((found.setup, found.in_flight, found.policy, rate, over, p99, p99_over))
    titles = ("", "in flight", "policy", "per second", "learned is", "p99", "learned is")
    return _table(titles, rows)


def _minorities(found: Iterable[Minority]) -> str:
    rows = [
        (
            m.where,
            f"{m.many.latency_s / m.many_at_once.latency_s:.3f}x",
            f"{m.few.latency_s / m.few_at_once.latency_s:.3f}x",
            f"{m.many.on_time:.1%} ({m.many_at_once.on_time:.1%})",
            f"{m.few.on_time:.1%} ({m.few_at_once.on_time:.1%})",
        )
        for m in found
    ]
    titles = ("", "latency, the many", "the few", "on time, the many", "the few")
    return _table(titles, rows)


def _hurries(found: Iterable[Hurry]) -> str:
    rows = [
        (
            h.where,
            f"{h.hurried:.1%} ({h.hurried_at_once:.1%})",
            f"{h.others:.1%} ({h.others_at_once:.1%})",
            f"{h.all_over_at_once:.3f}x",
        )
        for h in found
    ]
    return _table(("", "on time, in a hurry", "the others", "of all, over at once"), rows)


def _decisions(times: Iterable[DecisionTimes]) -> str:
    rows = [
        (t.queue, f"{t.median_us:.0f} us", f"{t.p99_us:.0f} us", f"{t.share_p99:.2%}")
        for t in times
    ]
    return _table(("queue", "median", "p99", "of the batch, p99"), rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

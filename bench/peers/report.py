"""Writes `BENCHMARKS.md` from findings. Pure but for the caller's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.peers.results import Findings, Run, Spread, best, figure, ratio
from bench.peers.scenarios import MAX_IDLE_SHARE, SCENARIOS, TARGETS, Scenario, Target

INTRODUCTION = """# Benchmarks

Headrace beside Triton, MLServer, mosec and LitServe, written by `make bench-peers` (it needs
h2load, which the Debian package `nghttp2-client` has). Every run is in `benchmarks.json`.

All servers run on one machine with the load generator, each from an environment of its own at the
versions of `bench/peers/constraints/`, with the same model code, one worker and one torch thread.
Headrace is started without a setting that touches batching; of the others each setting below was
tried, and the best one kept for each scenario. Before a server is timed, 24 answers to requests
sent eight at a time are compared with the model's own. Servers take turns, round after round;
LitServe, which polls while nobody asks it, is paused (SIGSTOP) when it is not its turn. Figures are
medians over the rounds, with the least and the most in brackets. CPU is the user and system time of
all processes of the server over its answers.

A row compares servers, and transports with them: mosec and LitServe speak HTTP/1.1 (mosec with the
tensor's bytes as the body, LitServe with base64 in JSON), the others gRPC with raw contents.
"""

COMMANDS = """For gRPC `h2load -c CONNECTIONS -m STREAMS -n REQUESTS -d BODY -H 'te: trailers'
-H 'content-type: application/grpc' URL/inference.GRPCInferenceService/ModelInfer`, for HTTP/1.1
`h2load --h1 -c CONNECTIONS*STREAMS ...`; REQUESTS as many as the run before it says fit into the
time of a run. Callers in Python are the generator of `headrace bench`. How each server is started
is in `bench/peers/servers`, what it runs in `bench/peers/served`. The whole took {minutes:.1f}
minutes.
"""

FIGURES = {
    "per_s": "answers/s",
    "cpu_us": "CPU per answer",
    "p50_ms": "p50",
    "p99_ms": "p99",
}
TITLES = {scenario.key: scenario.title for scenario in SCENARIOS}


BUSY_LOAD = 1.0
"""Load average from which the machine had more to do than this."""

BUSY = """**The machine was busy with other work while this was measured (load average {load:.1f} at
the beginning): figures are low, and spreads wide. Quotients say more, and not much.**
"""


def report(findings: Findings, pictures: Sequence[str]) -> str:
    """The whole document; `pictures` are names of files beside it."""
    return "\n".join(
        [
            INTRODUCTION,
            *([BUSY.format(load=findings.load)] if findings.load > BUSY_LOAD else ()),
            *_targets(findings),
            *(line for scenario in SCENARIOS for line in _scenario(findings, scenario)),
            *_idle(findings),
            *(f"![{name}]({name})\n" for name in pictures),
            *_settings(findings),
            *_problems(findings),
            *_setup(findings),
        ]
    )


def _targets(findings: Findings) -> Iterator[str]:
    yield "## Numbers to reach\n"
    yield "Quotients of two runs of one round: the median, and the least and the most.\n"
    yield from table(
        ("scenario", "", "wanted", "measured", ""),
        [
            (
                TITLES[t.scenario],
                f"{FIGURES[t.figure]}: {t.over} / {t.under}",
                wanted(t),
                *measured(findings, t),
            )
            for t in TARGETS
        ],
    )


def wanted(target: Target) -> str:
    """The bound in words."""
    return f"{'at most' if target.at_most else 'at least'} {target.bound:g}"


def measured(findings: Findings, target: Target) -> tuple[str, str]:
    """The quotient, and whether it will do."""
    over, under = (findings.of(target.scenario, name) for name in (target.over, target.under))
    found = ratio(over, under, target.figure)
    if found is None:
        return "not measured", ""
    return spread(found, 2), "reached" if target.met(found.median) else "missed"


def _scenario(findings: Findings, scenario: Scenario) -> Iterator[str]:
    names = findings.contenders(scenario.key)
    if not names:
        return
    load = next(c.load for c in scenario.contenders if c.name in names)
    yield f"## {scenario.title}\n"
    yield f"{load}. {scenario.words}\n"
    rows = []
    for name in names:
        runs = findings.of(scenario.key, name)
        rows.append((name, runs[0].transport, runs[0].setting, *_figures(runs), str(len(runs))))
    columns = ("per second", "CPU µs", "p50 ms", "p99 ms")
    yield from table(("", "transport", "setting", *columns, "rounds"), rows)


def _figures(runs: Sequence[Run]) -> Iterator[str]:
    yield spread(figure(runs, "per_s"), 0)
    yield spread(figure(runs, "cpu_us"), 0)
    for name in ("p50_ms", "p99_ms"):
        yield spread(figure(runs, name), 2)


def _idle(findings: Findings) -> Iterator[str]:
    if findings.idle:
        yield "## Idle\n"
        yield (
            "The servers of the first scenario while nobody asks them; memory of all processes, "
            f"shared pages in shares. Headrace is to stay below {MAX_IDLE_SHARE:.1%} of a core.\n"
        )
        yield from table(
            ("", "CPU, share of a core", "memory MiB"),
            [(i.server, f"{i.cpu_share:.1%}", f"{i.memory_mib:,.0f}") for i in findings.idle],
        )


def _settings(findings: Findings) -> Iterator[str]:
    places = dict.fromkeys((t.workload, t.goal, t.server) for t in findings.trials)
    if not places:
        return
    yield "## Settings that were tried\n"
    rows = []
    for workload, goal, server in places:
        trials = findings.trials_of(server, workload, goal)
        chosen = best(trials, goal)
        for trial in trials:
            reached = f"{trial.shot.per_s:,.0f}/s"
            if goal == "p50_ms":
                reached = f"p50 {trial.shot.p50_ms:.2f} ms"
            kept = "kept" if trial is chosen else ""
            rows.append((workload, server, trial.setting, reached, kept))
    yield from table(("model", "", "setting", "reached", ""), rows)


def _problems(findings: Findings) -> Iterator[str]:
    if findings.problems:
        yield "## Not measured\n"
        for problem in findings.problems:
            yield f"- {problem.what}: {problem.why}"
        yield ""


def _setup(findings: Findings) -> Iterator[str]:
    yield "## Machine, versions, commands\n"
    facts = {**findings.machine, **findings.versions}
    yield from table(("", ""), list(facts.items()))
    yield COMMANDS.format(minutes=findings.wall_s / 60)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def spread(values: Spread, digits: int) -> str:
    """`median (least to most)`."""
    median, least, most = (f"{v:,.{digits}f}" for v in (values.median, values.least, values.most))
    return f"{median} ({least} to {most})"

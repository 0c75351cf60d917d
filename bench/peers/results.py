"""What came out of the whole: every run as it was, and what follows from them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from bench.peers.shots import Shot


@dataclass(frozen=True, slots=True)
class Run:
    """One contender under the load of a scenario, in one round."""

    scenario: str
    contender: str
    setting: str
    transport: str
    round: int
    shot: Shot


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of one server on the way to its best; `goal` is what it was tried for."""

    workload: str
    goal: str
    server: str
    setting: str
    shot: Shot


@dataclass(frozen=True, slots=True)
class Idle:
    """A server that nobody asks: share of one core, and memory of all its processes."""

    server: str
    cpu_share: float
    memory_mib: float


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be measured, and why."""

    what: str
    why: str


@dataclass
class Findings:
    """Everything that was measured; filled by `match`, read by `report` and `plots`. `load` is the
    machine's load average before any of it."""

    machine: Mapping[str, str] = field(default_factory=dict)
    load: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    idle: list[Idle] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def of(self, scenario: str, contender: str) -> list[Run]:
        """The runs of one contender, by round."""
        return [r for r in self.runs if (r.scenario, r.contender) == (scenario, contender)]

    def trials_of(self, server: str, workload: str, goal: str) -> list[Trial]:
        """The settings of one server that were tried for a goal."""
        wanted = (server, workload, goal)
        return [t for t in self.trials if (t.server, t.workload, t.goal) == wanted]

    def contenders(self, scenario: str) -> list[str]:
        """Who was measured, in order of appearance."""
        return list(dict.fromkeys(r.contender for r in self.runs if r.scenario == scenario))

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """What `to_json` wrote."""
        raw = json.loads(text)
        for name, kind in (("runs", Run), ("trials", Trial)):
            raw[name] = [kind(**{**item, "shot": Shot(**item["shot"])}) for item in raw[name]]
        raw["idle"] = [Idle(**item) for item in raw["idle"]]
        raw["problems"] = [Problem(**item) for item in raw["problems"]]
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one."""
        return cls(median(values), min(values), max(values))


def figure(runs: Sequence[Run], name: str) -> Spread:
    """The spread of one figure of the shots over the rounds."""
    return Spread.of([getattr(run.shot, name) for run in runs])


def ratio(over: Sequence[Run], under: Sequence[Run], name: str) -> Spread | None:
    """The spread of the quotients of one figure, each of two runs of the same round; None where
    there is no such pair."""
    below = {run.round: getattr(run.shot, name) for run in under}
    pairs = [getattr(r.shot, name) / below[r.round] for r in over if below.get(r.round)]
    return Spread.of(pairs) if pairs else None


def best(trials: Sequence[Trial], goal: str) -> Trial:
    """The trial that reached most answers per second, or for `p50_ms` the least latency."""
    if goal == "p50_ms":
        return min(trials, key=lambda trial: trial.shot.p50_ms)
    return max(trials, key=lambda trial: trial.shot.per_s)

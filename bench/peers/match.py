"""Carries out scenarios: finds settings, starts servers, lets them take turns within the time."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bench.peers.environments import ROOT, UnavailableError
from bench.peers.peer import Peer, Setting
from bench.peers.results import Findings, Idle, Problem, Run, Trial, best
from bench.peers.running import RunningPeer
from bench.peers.scenarios import Contender, Load, Scenario
from bench.peers.shots import FailedRunError
from bench.peers.workloads import Workload, WrongAnswerError

TRIAL_S = {"mlp": 1.0, "images": 1.0, "sentences": 5.0}
TUNING_SHARE = 0.65
"""Of a scenario's time, for trying settings; peers have equal parts of it."""

MIN_ROUNDS = 2
MAX_FAILURES = 2
"""Failed runs after which a contender is out of a scenario."""

IDLE_S = 3.0

Say = Callable[[str], None]


class Clock:
    """The time that is left of a whole run."""

    def __init__(self, seconds: float) -> None:
        self._began_s = time.monotonic()
        self._end_s = self._began_s + seconds

    @property
    def elapsed_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began_s

    def share(self, share: float, of: float) -> Clock:
        """A part of what is left."""
        return Clock(max(0.0, self._end_s - time.monotonic()) * share / of)

    @property
    def is_past(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end_s


class Match:
    """Runs scenarios into `findings`; `scale` shortens each run (for tests).

    All servers that were started end when it is left. Those that poll are paused while another one
    is measured.
    """

    def __init__(
        self,
        peers: Mapping[str, Peer],
        workloads: Mapping[str, Workload],
        scenarios: Sequence[Scenario],
        findings: Findings,
        say: Say,
        scale: float = 1.0,
    ) -> None:
        self._peers, self._workloads, self._findings = peers, workloads, findings
        self._say, self._scale = say, scale
        self._scenarios = scenarios
        self._goals: dict[str, dict[str, Load]] = {}
        for scenario in scenarios:
            self._goals.setdefault(scenario.workload, {})[scenario.goal] = scenario.tuning
        self._best: dict[tuple[str, str, str], Setting] = {}
        self._tuned: set[tuple[str, str]] = set()
        self._running: dict[tuple[str, Setting], RunningPeer] = {}
        self._workload: Workload | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def play_all(self, clock: Clock) -> None:
        """Every scenario, each within its share of the time."""
        for index, scenario in enumerate(self._scenarios):
            weights = sum(later.share for later in self._scenarios[index:])
            self.play(scenario, clock.share(scenario.share, weights))
            if scenario.key == "unary":
                self.rest()

    def play(self, scenario: Scenario, clock: Clock) -> None:
        """One scenario, with the servers that the ones before left running for the same model."""
        self._say(f"-- {scenario.title}")
        workload = self._workloads[scenario.workload]
        if workload is not self._workload:
            self._stack.close()
            self._running.clear()
            self._workload = workload
        able = [c for c in scenario.contenders if self._can(scenario, c)]
        to_tune = list(dict.fromkeys(c.peer for c in able if c.setting is None))
        tuning = clock.share(TUNING_SHARE, of=1.0)
        for index, peer in enumerate(to_tune):
            self._tune(scenario, peer, tuning.share(1.0, of=len(to_tune) - index))
        servers = {c.name: self._start(scenario, c) for c in able}
        standing = [c for c in able if servers[c.name] is not None]
        failures = Counter[str]()
        for number in range(scenario.rounds):
            if number >= MIN_ROUNDS and clock.is_past:
                self._say(f"   {number} of {scenario.rounds} rounds: the time is over")
                break
            for contender in list(standing):
                server = servers[contender.name]
                assert server is not None
                failures[contender.name] += not self._measure(scenario, contender, server, number)
                if failures[contender.name] == MAX_FAILURES:
                    standing.remove(contender)

    def rest(self) -> None:
        """Look at each running server while nobody asks it."""
        seen = set()
        for (key, _), server in self._running.items():
            if key not in seen:
                seen.add(key)
                server.resume()
                time.sleep(0.5 * self._scale)  # what it does on waking
                before, began_s = server.usage(), time.monotonic()
                time.sleep(IDLE_S * self._scale)
                share = server.usage().since(before) / (time.monotonic() - began_s)
                memory = server.memory_bytes() / 2**20
                server.pause()
                self._findings.idle.append(Idle(server.peer.name, share, memory))
                self._say(
                    f"   {server.peer.name:<26} idle: {share:.1%} of a core, {memory:,.0f} MiB"
                )

    def _can(self, scenario: Scenario, contender: Contender) -> bool:
        if contender.peer not in self._peers:
            return False  # it was said why, or it was not asked for
        why = contender.missing()
        if not why:
            try:
                contender.load.require()
            except UnavailableError as error:
                why = str(error)
        if why:
            self._cannot(scenario, contender.name, why)
        return not why

    def _tune(self, scenario: Scenario, key: str, clock: Clock) -> None:
        peer = self._peers[key]
        settings = peer.settings(scenario.workload)
        goals = self._goals[scenario.workload]
        if (key, scenario.workload) in self._tuned:
            return
        self._tuned.add((key, scenario.workload))
        if len(settings) == 1:
            self._best.update({(key, scenario.workload, goal): settings[0] for goal in goals})
            return
        tried: dict[str, Setting] = {}
        for index, setting in enumerate(settings):
            if index and clock.is_past:
                self._cannot(scenario, f"{peer.name}, {setting}", "not tried: the time was over")
                continue
            try:
                trials = self._try(peer, setting, scenario.workload)
            except (UnavailableError, FailedRunError) as error:
                self._cannot(scenario, f"{peer.name}, {setting}", str(error))
                continue
            tried[str(setting)] = setting
            self._findings.trials += trials
        for goal in goals:
            trials = self._findings.trials_of(peer.name, scenario.workload, goal)
            if trials:
                self._best[key, scenario.workload, goal] = tried[best(trials, goal).setting]

    def _try(self, peer: Peer, setting: Setting, workload: str) -> list[Trial]:
        """One setting under the load of each goal that some scenario has for this model."""
        trials = []
        with RunningPeer(peer, self._workloads[workload], setting) as server:
            for goal, load in self._goals[workload].items():
                shot = load(server, TRIAL_S[workload] * self._scale)
                trials.append(Trial(workload, goal, peer.name, str(setting), shot))
                self._say(
                    f"   tried {peer.name}, {setting}: {shot.per_s:,.0f}/s, "
                    f"p50 {shot.p50_ms:.2f} ms ({load})"
                )
        return trials

    def _start(self, scenario: Scenario, contender: Contender) -> RunningPeer | None:
        place = (contender.peer, scenario.workload, scenario.goal)
        setting = contender.setting or self._best.get(place)
        if setting is None:
            return None  # no setting worked, which was said
        at = (contender.peer, setting)
        if at not in self._running:
            assert self._workload is not None
            server = RunningPeer(self._peers[contender.peer], self._workload, setting)
            try:
                self._running[at] = self._stack.enter_context(server)
            except UnavailableError as error:
                self._cannot(scenario, contender.name, str(error))
                return None
            server.pause()
        return self._running[at]

    def _measure(
        self, scenario: Scenario, contender: Contender, server: RunningPeer, number: int
    ) -> bool:
        try:
            server.revive()
            server.resume()
            shot = contender.load(server, scenario.seconds * self._scale)
        except (FailedRunError, UnavailableError, WrongAnswerError) as error:
            self._cannot(scenario, contender.name, str(error))
            return False
        finally:
            server.pause()
        self._findings.runs.append(
            Run(
                scenario.key,
                contender.name,
                str(server.setting),
                server.peer.wire.name,
                number,
                shot,
            )
        )
        self._say(
            f"   round {number + 1}  {contender.name:<26} {shot.per_s:9,.0f}/s  "
            f"{shot.cpu_us:8,.0f} us CPU  p50 {shot.p50_ms:8.2f} ms  p99 {shot.p99_ms:8.2f} ms"
        )
        return True

    def _cannot(self, scenario: Scenario, what: str, why: str) -> None:
        # The rest is for whoever looks on; it holds paths of this machine.
        self._findings.problems.append(Problem(f"{scenario.title}: {what}", first_line(why)))
        self._say(f"   {what}: {why}")


def install(peers: Mapping[str, Peer], findings: Findings, say: Say) -> Mapping[str, Peer]:
    """Those that can be installed; the others become problems."""

    def why_not(peer: Peer) -> str:
        began_s = time.monotonic()
        try:
            peer.install()
        except UnavailableError as error:
            findings.problems.append(Problem(peer.name, first_line(str(error))))
            say(f"   {peer.name}: {error}")
            return str(error)
        say(f"   {peer.name} {peer.version}: {time.monotonic() - began_s:.0f} s")
        return ""

    # Two at a time: pip unpacks and compiles on one core.
    with ThreadPoolExecutor(2) as pool:
        return {
            key: peers[key]
            for key, why in zip(peers, pool.map(why_not, peers.values()), strict=True)
            if not why
        }


def first_line(text: str) -> str:
    """Without the folders of this machine."""
    return text.splitlines()[0].replace(f"{ROOT}/", "").replace(f"{tempfile.gettempdir()}/", "")

"""Who meets whom under which load, and the numbers that Headrace is meant to reach.

Nothing here knows how a server is started; a scenario names peers by their keys in `servers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.peers.h2load import H2Load
from bench.peers.loop import Loop
from bench.peers.peer import Setting
from bench.peers.running import RunningPeer
from bench.peers.servers.headrace_peer import SHARED_MEMORY_FLAG, takes_shared_memory
from bench.peers.shots import Shot

ALL = ("echo", "headrace", "triton", "mlserver", "mosec", "litserve")
NAMES = {
    "echo": "bare echo",
    "headrace": "Headrace",
    "triton": "Triton",
    "mlserver": "MLServer",
    "mosec": "mosec",
    "litserve": "LitServe",
}


class Load(Protocol):
    """Something that can be done to a server for some seconds; prints as what it is."""

    def require(self) -> None: ...

    def __call__(self, server: RunningPeer, seconds: float) -> Shot: ...


@dataclass(frozen=True)
class Contender:
    """A peer under one load. Without a `setting`, its best one for the model is found first.
    `missing` says why it cannot take part, and nothing if it can."""

    name: str
    peer: str
    load: Load
    setting: Setting | None = None
    missing: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Scenario:
    """Contenders that take turns.

    Attributes:
        key: short name.
        title, words: for the report.
        workload: the model.
        goal: of the search for settings, `per_s` or `p50_ms`.
        tuning: the load of that search.
        seconds: of one run.
        rounds: at most.
        share: of the time that is left, beside the shares of the scenarios to come.
    """

    key: str
    title: str
    words: str
    workload: str
    goal: str
    tuning: Load
    contenders: Sequence[Contender]
    seconds: float
    rounds: int
    share: float


@dataclass(frozen=True)
class Target:
    """`figure` of one contender over that of another, to be at least or at most `bound`."""

    scenario: str
    figure: str
    over: str
    under: str
    bound: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether such a quotient will do."""
        return value <= self.bound if self.at_most else value >= self.bound


def no_shared_memory() -> str:
    return "" if takes_shared_memory() else f"this version has no {SHARED_MEMORY_FLAG} yet"


BUSY, LONE, MANY, LARGE = H2Load(4, 16), H2Load(1, 1), Loop(64, warmup_s=1.5), H2Load(4, 4)
SHARED = H2Load(4, 4, shared_memory=True)
UNARY, STREAM, FEWER = Loop(64, "unary"), Loop(64, "stream"), Loop(32, "stream")

SCENARIOS = (
    Scenario(
        "unary",
        "A small network, 64 in flight",
        "One request over and over, so what counts is what a request costs beside the model.",
        "mlp",
        "per_s",
        BUSY,
        [Contender(NAMES[peer], peer, BUSY) for peer in ALL],
        seconds=1.6,
        rounds=5,
        share=5.0,
    ),
    Scenario(
        "alone",
        "A small network, one request at a time",
        "The settings are those with the lowest median latency here.",
        "mlp",
        "p50_ms",
        LONE,
        [Contender(NAMES[peer], peer, LONE) for peer in ALL],
        seconds=1.2,
        rounds=5,
        share=1.3,
    ),
    Scenario(
        "streams",
        "A small network, calls that share streams",
        "The client is Python, too (one process, the SDK's own streams): it shares the machine "
        "with the server, and its cost is part of the calls per second. Settings are those that "
        "were best above.",
        "mlp",
        "per_s",
        BUSY,
        [
            Contender("Headrace, streams", "headrace", STREAM),
            Contender("Headrace, unary", "headrace", UNARY),
            Contender("Triton, unary", "triton", UNARY),
        ],
        seconds=2.0,
        rounds=5,
        share=1.0,
    ),
    Scenario(
        "fewer-streams",
        "A small network, half as many calls that share streams",
        "As above. Triton 2.51 ends with a segmentation fault where 64 callers share streams, so "
        "half of them do here.",
        "mlp",
        "per_s",
        BUSY,
        [
            Contender("Headrace, streams", "headrace", FEWER),
            Contender("Triton, streams", "triton", FEWER),
        ],
        seconds=2.0,
        rounds=5,
        share=0.5,
    ),
    Scenario(
        "sentences",
        "Sentences, 64 in flight",
        "Sentences from docstrings, 8 to 900 characters, the same in the same order for everyone; "
        "no tokenizer pads to more than the longest of a batch.",
        "sentences",
        "per_s",
        MANY,
        [
            Contender("Headrace", "headrace", MANY),
            Contender("Triton, default batching", "triton", MANY, Setting(32)),
            Contender("Triton, best found", "triton", MANY),
            Contender("mosec", "mosec", MANY),
            Contender("LitServe", "litserve", MANY),
        ],
        seconds=8.0,
        rounds=3,
        share=6.5,
    ),
    Scenario(
        "images",
        "Images of 600 kB, 16 in flight",
        "Three means of 3x224x224 numbers: moving them is the work. In shared memory the server "
        "finds the image, and leaves the answer, where the client said.",
        "images",
        "per_s",
        LARGE,
        [
            Contender("Headrace", "headrace", LARGE),
            Contender("Triton", "triton", LARGE),
            Contender("Headrace, shared memory", "headrace", SHARED, missing=no_shared_memory),
            Contender("Triton, shared memory", "triton", SHARED),
        ],
        seconds=1.6,
        rounds=5,
        share=1.6,
    ),
)

TARGETS = (
    Target("unary", "cpu_us", "Headrace", "bare echo", 1.5, at_most=True),
    Target("unary", "per_s", "Headrace", "Triton", 0.75),
    Target("alone", "p50_ms", "Headrace", "Triton", 1.0, at_most=True),
    Target("alone", "p99_ms", "Headrace", "Triton", 1.2, at_most=True),
    Target("streams", "cpu_us", "Triton, unary", "Headrace, streams", 1.3),
    Target("streams", "per_s", "Headrace, streams", "Triton, unary", 1.3),
    Target("fewer-streams", "cpu_us", "Triton, streams", "Headrace, streams", 1.8),
    Target("fewer-streams", "per_s", "Headrace, streams", "Triton, streams", 1.8),
    Target("sentences", "per_s", "Headrace", "Triton, default batching", 3.0),
    Target("sentences", "per_s", "Headrace", "Triton, best found", 1.7),
    Target("sentences", "per_s", "Headrace", "mosec", 1.7),
    Target("sentences", "per_s", "Headrace", "LitServe", 1.7),
    Target("images", "per_s", "Headrace", "Triton", 1.0),
    Target("images", "per_s", "Headrace, shared memory", "Headrace", 2.0),
)
MAX_IDLE_SHARE = 0.005
"""Of a core, for a Headrace that nobody asks."""

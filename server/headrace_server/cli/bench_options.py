"""What `headrace bench` is told: the options, checked, and the load that they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from headrace.access import OPEN_ACCESS, Access
from headrace_server.bench.arrivals import Arrivals, Renewal, Trace
from headrace_server.bench.plan import ClosedLoop, Load, OpenLoop, Timing
from headrace_server.bench.transport import TRANSPORTS
from headrace_server.cli.errors import USAGE, CommandError
from headrace_server.cli.pictures import check_picture

DEFAULT_CONCURRENCY = "1 2 4 8 16 32 64"

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. Lists of numbers are texts as typed, None where nothing was; durations
    are in seconds, `stable_within` in per cent.

    Raises:
        CommandError: an option makes no sense by itself, or needs an extra that is missing.
    """

    model: str
    version: str
    address: str
    concurrency: str | None
    rate: str | None
    arrivals: str
    transport: str
    input_file: Path | None
    shapes: Sequence[str]
    rows: int
    timeout: float
    warmup: float
    duration: float
    stable_within: float
    processes: int
    seed: int
    json_file: Path | None
    plot_file: Path | None
    access: Access = OPEN_ACCESS

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            listed = " or ".join(TRANSPORTS)
            raise CommandError(f"expected --transport {listed}, got '{self.transport}'", USAGE)
        if self.input_file is not None and self.shapes:
            raise CommandError("--shape is for synthetic inputs: leave it or --input out", USAGE)
        # What was measured would be lost if this came to light at the end.
        for file in (self.json_file, self.plot_file):
            if file is not None and not file.absolute().parent.is_dir():
                raise CommandError(f"cannot write {file}: there is no such directory", USAGE)
        if self.plot_file is not None:
            check_picture("bench", self.plot_file)

    @property
    def timing(self) -> Timing:
        """How long each step goes on."""
        return Timing(self.warmup, self.duration, self.stable_within / 100)


def loads_of(options: Options) -> list[Load]:
    """The steps that are asked for, at least one.

    Raises:
        CommandError: they contradict each other, or are none.
    """
    if options.rate is not None and options.concurrency is not None:
        raise CommandError("--rate is open loop, --concurrency closed: leave one out", USAGE)
    kind, _, argument = options.arrivals.partition(":")
    if options.rate is not None or kind == "trace":
        arrivals = _arrivals(kind, argument, options.arrivals)
        rates = (
            [arrivals.rate]
            if options.rate is None and isinstance(arrivals, Trace)
            else _numbers("--rate", options.rate or "", float)
        )
        return [OpenLoop(rate, arrivals) for rate in rates]
    if options.arrivals != "poisson":
        raise CommandError("--arrivals is for open loop: expected --rate with it", USAGE)
    callers = _numbers("--concurrency", options.concurrency or DEFAULT_CONCURRENCY, int)
    return [ClosedLoop(concurrency) for concurrency in callers]


def _numbers(flag: str, text: str, parse: Callable[[str], Number]) -> list[Number]:
    words = text.replace(",", " ").split()
    try:
        numbers = [parse(word) for word in words]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        kind = "whole numbers" if parse is int else "numbers"
        raise CommandError(f"expected {kind} above 0 for {flag}, got '{text}'", USAGE)
    return numbers


def _arrivals(kind: str, argument: str, text: str) -> Arrivals:
    try:
        match kind, argument:
            case "poisson", "":
                return Renewal(1.0)
            case "constant", "":
                return Renewal(0.0)
            case "gamma", _:
                return Renewal(_float(argument))
            case "trace", _ if argument:
                return Trace(_times(Path(argument)))
    except ValueError as error:
        raise CommandError(f"--arrivals {text}: {error}", USAGE) from None
    raise CommandError(
        f"expected --arrivals poisson, constant, gamma:CV or trace:FILE, got '{text}'", USAGE
    )


def _times(file: Path) -> list[float]:
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None
    return [_float(line) for line in lines if line.strip()]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got '{text.strip()}'") from None

"""When open-loop requests are due: renewal processes and recorded traces. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Gaps = npt.NDArray[np.float64]

BLOCK = 1024
"""Gaps drawn at a time: numpy costs as much for one as for hundreds."""

MAX_CV = 1_000
"""The burstiest there is; squares of far larger ones overflow."""

MIN_CV = 1e-6
"""Anything less is a metronome; inverse squares of far smaller ones overflow."""


class Arrivals(Protocol):
    """A process of arrivals, whatever its rate."""

    def gaps(self, random: np.random.Generator) -> Iterator[Gaps]:
        """Endless blocks of gaps between arrivals, with a mean of 1 over the long run."""
        ...


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gaps with coefficient of variation `cv`, gamma-distributed: 0 is a metronome,
    1 a Poisson process, more comes in bursts.

    Raises:
        ValueError: `cv` is not from 0 to `MAX_CV`.
    """

    cv: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.cv <= MAX_CV:
            raise ValueError(
                f"expected a coefficient of variation from 0 to {MAX_CV}, got {self.cv:g}"
            )

    def gaps(self, random: np.random.Generator) -> Iterator[Gaps]:
        """Gamma of shape 1/cv² and scale cv²."""
        variance = self.cv**2
        while True:
            if self.cv < MIN_CV:
                yield np.ones(BLOCK)
            else:
                yield random.gamma(1 / variance, variance, BLOCK)


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded arrivals, again from the start once they end; a mean gap lies between the rounds.

    `times_s` ascend, in seconds from any moment.

    Raises:
        ValueError: fewer than two times, or they do not ascend.
    """

    times_s: Sequence[float] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.times_s) < 2:
            raise ValueError(f"expected at least 2 times in a trace, got {len(self.times_s)}")
        steps = np.diff(self.times_s)
        if not (np.isfinite(steps).all() and steps.min() >= 0 and steps.max() > 0):
            raise ValueError("expected times in a trace to ascend")

    @property
    def rate(self) -> float:
        """Arrivals per second as recorded."""
        return (len(self.times_s) - 1) / (self.times_s[-1] - self.times_s[0])

    def gaps(self, random: np.random.Generator) -> Iterator[Gaps]:
        """The recorded gaps, scaled to a mean of 1; nothing is random about them."""
        block = np.append(np.diff(self.times_s) * self.rate, 1.0)
        while True:
            yield block


def due_times(arrivals: Arrivals, rate: float, seed: int, start_s: float = 0.0) -> Iterator[float]:
    """Moments, in seconds, at which requests are due from `start_s` on, at `rate` per second.

    The same arguments give the same moments, so processes that each take every n-th of them send
    exactly this process together. (Independent streams would do so for Poisson alone.)
    """
    last_s = start_s
    for block in arrivals.gaps(np.random.default_rng(seed)):
        times_s = last_s + np.cumsum(block) / rate
        last_s = float(times_s[-1])
        yield from times_s.tolist()

"""Remembers what the last minute's batches looked like, as an observer with bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, Request
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from headrace_server.workers.executor import BatchTiming

Key = TypeVar("Key")
Value = TypeVar("Value", int, float)

SECONDS = 60
SAMPLES = 32
"""Batches of each second that are remembered one by one, chosen evenly; the others are counted.
Some 2,000 in a minute tell a 99th percentile, and a busy model costs about 1 MB."""
QUEUED = 8
"""Requests of such a batch whose time in the queue is remembered."""
TYPICAL = (0.05, 0.5, 0.95)
"""Quantiles of the padded lengths that count as typical: a short, a usual and a long one."""


@dataclass(frozen=True, slots=True)
class BatchSample:
    """One batch as it went. Times are in seconds.

    `duration_s` is how long it ran from the moment at which its worker was free for it, as the cost
    model takes it; `expected_s` is what that was expected to be (None: nothing was); `compute_s` is
    the worker's own time.
    """

    rows: int
    length: int
    padding_share: float
    requests: int
    queue_s: Sequence[float]
    duration_s: float
    expected_s: float | None
    compute_s: float


class Quantiles(NamedTuple):
    """Values that 5, 50, 95 and 99 per cent of all do not exceed."""

    p5: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What went on in the last minute.

    Counts are exact. Quantiles and the padding share are estimated from `samples`, and None where
    there is nothing to estimate them from.

    Args:
        batches: batches that were answered.
        requests: requests in them, those included whose callers went away meanwhile.
        batch_rows: how many of the batches had so many rows.
        dispatches: how many of them left the queue for which reason.
        refusals: requests that were refused or failed, by reason.
        cancelled: requests whose callers went away.
        padding_share: part of the batches' elements that was padding.
        queue_s: from arrival to the start of the batch, by request.
        compute_s: the worker's time, by batch.
        prediction_ratio: expected over actual duration, by batch.
        samples: some of the batches, up to `SAMPLES` of each second, in the order of seconds.
    """

    batches: int
    requests: int
    batch_rows: Counter[int]
    dispatches: Counter[str]
    refusals: Counter[str]
    cancelled: int
    padding_share: float
    queue_s: Quantiles | None
    compute_s: Quantiles | None
    prediction_ratio: Quantiles | None
    samples: Sequence[BatchSample]


@dataclass(slots=True)
class _Second:
    """What happened from second `at` to the next one on the engine's clock."""

    at: int
    batches: int = 0
    requests: int = 0
    batch_rows: Counter[int] = field(default_factory=Counter)
    dispatches: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    samples: list[BatchSample] = field(default_factory=list)


class LastMinute(Observer):
    """For each deployment the last `SECONDS` seconds in which anything happened.

    A batch costs a few increments, and the sample where it is one.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Deployment, deque[_Second]] = WeakKeyDictionary()
        self._random = Random(0)

    # -- reading ----------------------------------------------------------------------------

    def of(self, deployment: Deployment, now: float) -> Activity:
        """The minute of one deployment that ends `now` on the engine's clock, the running second
        included."""
        since = int(now) - SECONDS
        seconds = [second for second in self._seconds(deployment) if second.at > since]
        batches = list(_weighted(seconds))
        elements = sum(weight * b.rows * b.length for weight, b in batches)
        padding = sum(weight * b.rows * b.length * b.padding_share for weight, b in batches)
        return Activity(
            batches=sum(second.batches for second in seconds),
            requests=sum(second.requests for second in seconds),
            batch_rows=_total(second.batch_rows for second in seconds),
            dispatches=_total(second.dispatches for second in seconds),
            refusals=_total(second.refusals for second in seconds),
            cancelled=sum(second.cancelled for second in seconds),
            padding_share=padding / elements if elements else 0.0,
            queue_s=_quantiles(
                (queue_s, weight * b.requests / len(b.queue_s))
                for weight, b in batches
                for queue_s in b.queue_s
            ),
            compute_s=_quantiles((b.compute_s, weight) for weight, b in batches),
            prediction_ratio=_quantiles(
                (b.expected_s / b.duration_s, weight)
                for weight, b in batches
                if b.expected_s is not None and b.duration_s > 0
            ),
            samples=[sample for _, sample in batches],
        )

    def typical_lengths(self, deployment: Deployment) -> Sequence[int]:
        """A few padded lengths of batches that were really served, ascending, however long ago;
        empty before the first one."""
        lengths = [(b.length, weight) for weight, b in _weighted(self._seconds(deployment))]
        return sorted(set(_at(TYPICAL, lengths))) if lengths else []

    # -- observing --------------------------------------------------------------------------

    def deployment_removed(self, deployment: Deployment) -> None:
        """Nobody can ask any more."""
        self._of.pop(deployment, None)

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        """A request without an answer."""
        self._second(deployment, now).refusals[reason.value] += 1

    def request_cancelled(self, deployment: Deployment, request: Request, now: float) -> None:
        """A request that nobody waits for any more."""
        self._second(deployment, now).cancelled += 1

    def batch_completed(
        self, deployment: Deployment, batch: Batch, timing: BatchTiming, now: float
    ) -> None:
        """Count the batch, and remember it with the same chance as each other of its second
        (Vitter, 1985, algorithm R)."""
        second = self._second(deployment, now)
        second.batches += 1
        second.requests += len(batch.requests)
        second.batch_rows[batch.rows] += 1
        second.dispatches[batch.reason.value] += 1
        samples = second.samples
        if len(samples) < SAMPLES:
            samples.append(_sample(batch, timing))
        elif (at := int(self._random.random() * second.batches)) < SAMPLES:
            samples[at] = _sample(batch, timing)

    def _seconds(self, deployment: Deployment) -> Sequence[_Second]:
        return self._of.get(deployment, ())

    def _second(self, deployment: Deployment, now: float) -> _Second:
        seconds = self._of.get(deployment)
        if seconds is None:
            seconds = self._of[deployment] = deque(maxlen=SECONDS)
        at = int(now)
        if not seconds or seconds[-1].at != at:
            seconds.append(_Second(at))
        return seconds[-1]


def _sample(batch: Batch, timing: BatchTiming) -> BatchSample:
    requests = batch.requests
    # Evenly over the batch, which may be in order of length or of urgency.
    chosen = requests[:: -(-len(requests) // QUEUED)]
    return BatchSample(
        batch.rows,
        batch.length,
        batch.padding_share,
        len(requests),
        [batch.started_s - request.arrival_s for request in chosen],
        batch.ran_s,
        batch.expected_s,
        timing.compute_ns / 1e9,
    )


def _weighted(seconds: Iterable[_Second]) -> Iterator[tuple[float, BatchSample]]:
    """Each sample with the number of batches that it stands for."""
    for second in seconds:
        for sample in second.samples:
            yield second.batches / len(second.samples), sample


def _total(counters: Iterable[Counter[Key]]) -> Counter[Key]:
    total: Counter[Key] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _quantiles(weighted: Iterable[tuple[float, float]]) -> Quantiles | None:
    values = list(weighted)
    return Quantiles(*_at((0.05, 0.5, 0.95, 0.99), values)) if values else None


def _at(shares: Sequence[float], weighted: Iterable[tuple[Value, float]]) -> list[Value]:
    """For each share, the smallest value such that those up to it have this share of all weight."""
    values, weights = zip(*sorted(weighted), strict=True)
    reached = list(accumulate(weights))
    # A hair less, since sums of weights are rounded.
    return [values[bisect_left(reached, share * reached[-1] * (1 - 1e-9))] for share in shares]

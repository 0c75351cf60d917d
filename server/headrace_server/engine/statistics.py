"""Counts what the statistics RPC reports, as an observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, Request
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from headrace_server.workers.executor import BatchTiming


@dataclass(slots=True)
class DurationSum:
    """How often something happened, and how long it took in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count something that took `ns` in all, `count` times."""
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class BatchSizeStatistics:
    """What batches with one number of rows cost."""

    compute_input: DurationSum = field(default_factory=DurationSum)
    compute_infer: DurationSum = field(default_factory=DurationSum)
    compute_output: DurationSum = field(default_factory=DurationSum)


@dataclass(slots=True)
class DeploymentStatistics:
    """Counts of one deployment since it was loaded; the meaning of each field is Triton's.

    `success`, `fail`, `queue` and `compute_*` count requests (each request of a batch is charged
    with the whole of it), `inference_count` rows, `execution_count` batches.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: DurationSum = field(default_factory=DurationSum)
    fail: DurationSum = field(default_factory=DurationSum)
    queue: DurationSum = field(default_factory=DurationSum)
    compute_input: DurationSum = field(default_factory=DurationSum)
    compute_infer: DurationSum = field(default_factory=DurationSum)
    compute_output: DurationSum = field(default_factory=DurationSum)
    batches: dict[int, BatchSizeStatistics] = field(default_factory=dict)


class Statistics(Observer):
    """One `DeploymentStatistics` per deployment: a model that is loaded again begins anew, as in
    Triton, and what the load before it still finishes no longer shows."""

    def __init__(self, wall_clock_s: Callable[[], float]) -> None:
        self._wall_clock_s = wall_clock_s
        self._of: WeakKeyDictionary[Deployment, DeploymentStatistics] = WeakKeyDictionary()

    def of(self, deployment: Deployment) -> DeploymentStatistics:
        """The counts of one deployment so far."""
        found = self._of.get(deployment)
        if found is None:
            found = self._of[deployment] = DeploymentStatistics()
        return found

    def deployment_removed(self, deployment: Deployment) -> None:
        """Nobody can ask any more."""
        self._of.pop(deployment, None)

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        """A failed request, with the time it spent."""
        self.of(deployment).fail.add(_ns(now - request.arrival_s))

    def batch_completed(
        self, deployment: Deployment, batch: Batch, timing: BatchTiming, now: float
    ) -> None:
        """One execution and its requests."""
        counts = self.of(deployment)
        failed = [request for request in batch.requests if request.failed is not None]
        for request in failed:
            counts.fail.add(_ns(now - request.arrival_s))
        requests = len(batch.requests) - len(failed)
        arrivals_s = sum(r.arrival_s for r in batch.requests if r.failed is None)
        counts.last_inference_ms = int(self._wall_clock_s() * 1e3)
        counts.inference_count += batch.rows
        counts.execution_count += 1
        counts.success.add(_ns(requests * now - arrivals_s), requests)
        counts.queue.add(_ns(requests * batch.started_s - arrivals_s), requests)
        counts.compute_input.add(requests * timing.input_ns, requests)
        counts.compute_infer.add(requests * timing.infer_ns, requests)
        counts.compute_output.add(requests * timing.output_ns, requests)
        size = counts.batches.get(batch.rows)
        if size is None:
            size = counts.batches[batch.rows] = BatchSizeStatistics()
        size.compute_input.add(timing.input_ns)
        size.compute_infer.add(timing.infer_ns)
        size.compute_output.add(timing.output_ns)


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))

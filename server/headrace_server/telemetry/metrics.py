"""Counts for Prometheus, as an observer, and the families that a scrape reads.

Observations go into plain lists and integers, and the exposition library reads them only when
somebody scrapes: its own histograms cost several microseconds per observation and label set,
which every request would pay.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, Request
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from headrace_server.telemetry import names
from headrace_server.workers.executor import BatchTiming, WorkerState

Labels = tuple[str, ...]


class _Histogram:
    """Counts per bucket, not cumulated, and the sum. The last bucket is +Inf."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts with their upper bounds, as the exposition wants them."""
        rows, cumulated = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            cumulated += count
            rows.append(("+Inf" if bound == float("inf") else str(bound), float(cumulated)))
        return rows


class _OfDeployment:
    """What is counted for one version of a model."""

    def __init__(self) -> None:
        self.request_duration = _Histogram(names.REQUEST_DURATION.buckets)
        self.queue_duration = _Histogram(names.QUEUE_DURATION.buckets)
        self.compute_duration = _Histogram(names.COMPUTE_DURATION.buckets)
        self.batch_rows = _Histogram(names.BATCH_ROWS.buckets)
        self.batch_padding = _Histogram(names.BATCH_PADDING.buckets)
        self.prediction = _Histogram(names.PREDICTION.buckets)
        self.dispatches: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.restarts = 0


_HISTOGRAMS = (
    (names.REQUEST_DURATION, "request_duration"),
    (names.QUEUE_DURATION, "queue_duration"),
    (names.COMPUTE_DURATION, "compute_duration"),
    (names.BATCH_ROWS, "batch_rows"),
    (names.BATCH_PADDING, "batch_padding"),
    (names.PREDICTION, "prediction"),
)


class PrometheusMetrics(Observer, Collector):
    """Observes the engine and can be registered with a `CollectorRegistry`.

    Counters live as long as the server: a model that is loaded again goes on counting. Gauges sum
    over the loads of a version that live at the moment, and go with the last one.
    """

    def __init__(self, release: str) -> None:
        self._release = release
        self._of: dict[Labels, _OfDeployment] = {}
        self._deployments: tuple[Deployment, ...] = ()
        self._invalid: Counter[Labels] = Counter()

    # -- observing --------------------------------------------------------------------------

    def deployment_added(self, deployment: Deployment) -> None:
        """Gauges count this deployment from now on."""
        self._deployments += (deployment,)
        self._of.setdefault(_labels(deployment), _OfDeployment())

    def deployment_removed(self, deployment: Deployment) -> None:
        """And from now on they do not."""
        self._deployments = tuple(d for d in self._deployments if d is not deployment)

    def call_invalid(self, model: str, reason: Reason) -> None:
        """A call that never became a request."""
        self._invalid[model, "", reason.value] += 1

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        """A request without an answer."""
        self._of[_labels(deployment)].outcomes[reason.value] += 1

    def request_cancelled(self, deployment: Deployment, request: Request, now: float) -> None:
        """A request that nobody waits for any more."""
        self._of[_labels(deployment)].outcomes["cancelled"] += 1

    def batch_dispatched(self, deployment: Deployment, batch: Batch, now: float) -> None:
        """A batch on its way."""
        self._of[_labels(deployment)].dispatches[batch.reason.value] += 1

    def batch_completed(
        self, deployment: Deployment, batch: Batch, timing: BatchTiming, now: float
    ) -> None:
        """A batch and its requests."""
        counts = self._of[_labels(deployment)]
        answered = 0
        for request in batch.requests:
            if request.failed is not None:
                counts.outcomes[request.failed.value] += 1
            elif not request.cancelled:
                answered += 1
                counts.request_duration.observe(now - request.arrival_s)
                counts.queue_duration.observe(batch.started_s - request.arrival_s)
        counts.outcomes["ok"] += answered
        counts.compute_duration.observe(timing.compute_ns / 1e9)
        counts.batch_rows.observe(batch.rows)
        counts.batch_padding.observe(batch.padding_share)
        if batch.expected_s is not None and batch.ran_s > 0:
            counts.prediction.observe(batch.expected_s / batch.ran_s)

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        """Losses count as restarts: every lost worker is started again."""
        if state is WorkerState.LOST:
            self._of[_labels(deployment)].restarts += 1

    # -- scraping ---------------------------------------------------------------------------

    def collect(self) -> Iterator[Family]:
        """The families, with what was counted until now.

        Called on the exposition's thread; it copies before it iterates, since the event loop
        goes on counting.
        """
        per_model = sorted(self._of.items())
        for metric, attribute in _HISTOGRAMS:
            family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, counts in per_model:
                histogram: _Histogram = getattr(counts, attribute)
                family.add_metric(labels, histogram.buckets(), histogram.total)
            yield family
        yield _counter(
            names.REQUESTS,
            (
                ((*labels, outcome), count)
                for labels, counts in per_model
                for outcome, count in counts.outcomes.copy().items()
            ),
        )
        refused = Counter(dict(self._invalid))
        for labels, counts in per_model:
            for outcome, count in counts.outcomes.copy().items():
                if outcome not in ("ok", "cancelled"):
                    refused[(*labels, outcome)] += count
        yield _counter(names.REFUSALS, sorted(refused.items()))
        yield _counter(
            names.DISPATCHES,
            (
                ((*labels, reason), count)
                for labels, counts in per_model
                for reason, count in counts.dispatches.copy().items()
            ),
        )
        yield _counter(names.RESTARTS, ((labels, counts.restarts) for labels, counts in per_model))
        yield from self._gauges()

    def _gauges(self) -> Iterator[Family]:
        loads: dict[Labels, list[Deployment]] = {}
        for deployment in self._deployments:
            loads.setdefault(_labels(deployment), []).append(deployment)
        requests, size, workers = (
            GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for metric in (names.QUEUE_REQUESTS, names.QUEUE_BYTES, names.WORKERS)
        )
        for labels, deployments in sorted(loads.items()):
            requests.add_metric(labels, sum(d.queued_requests for d in deployments))
            size.add_metric(labels, sum(d.queued_bytes for d in deployments))
            states = Counter(state for d in deployments for state in d.workers.copy().values())
            for state in WorkerState:
                workers.add_metric((*labels, state.value), states[state])
        yield from (requests, size, workers)
        build = GaugeMetricFamily(names.BUILD.name, names.BUILD.help, labels=names.BUILD.labels)
        build.add_metric((self._release,), 1)
        yield build


def _counter(metric: names.Metric, samples: Iterable[tuple[Labels, int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, count in samples:
        family.add_metric(labels, count)
    return family


def _labels(deployment: Deployment) -> Labels:
    return (deployment.name, str(deployment.version))

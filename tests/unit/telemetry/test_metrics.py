"""What Prometheus sees: read back through its own parser, from counts made by hand."""

from __future__ import annotations

import math
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, DispatchReason, Request
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import Observer
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.spec import ModelSpec
from headrace_server.telemetry import names
from headrace_server.telemetry.exposition import (
    MAX_CONNECTIONS,
    MetricsEndpoint,
    MetricsPortError,
)
from headrace_server.telemetry.metrics import PrometheusMetrics
from headrace_server.workers.executor import (
    BatchTiming,
    ExecutorListener,
    RequestTensors,
    WorkerState,
)
from headrace_server.workers.placement import InstanceGroup

RELEASE = "1.2.3"
DIGITS = {"model": "digits", "version": "7"}


class IdleExecutor:
    """Has no workers: these tests tell the metrics themselves what happened."""

    async def start(self, listener: ExecutorListener) -> None:
        pass

    def run(self, worker_id: int, batch_id: int, requests: Sequence[RequestTensors]) -> None:
        raise AssertionError("nothing is dispatched here")

    def restart(self, worker_id: int) -> None:
        pass

    async def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass

    async def resize(self, groups: Sequence[InstanceGroup]) -> None:
        raise NotImplementedError

    def release(self, worker_id: int) -> None:
        raise NotImplementedError

    def devices(self) -> Sequence[str]:
        return []


def rules(spec: ModelSpec) -> SchedulingRules:
    return SchedulingRules(BatchingSettings(spec.max_batch_size), max_requests=1, max_bytes=1)


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics(RELEASE)


@pytest.fixture
async def deployment(metrics: PrometheusMetrics) -> Deployment:
    deployment = Deployment("digits", 7, IdleExecutor(), rules, LoopClock(), Observer())
    metrics.deployment_added(deployment)
    return deployment


def families(metrics: PrometheusMetrics) -> dict[str, Family]:
    """What a scrape returns, by the names of the families."""
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: PrometheusMetrics, sample: str, labels: Mapping[str, str]) -> float | None:
    """The value of one sample; None where there is no such sample."""
    found = [
        line.value
        for family in families(metrics).values()
        for line in family.samples
        if line.name == sample and line.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def buckets(family: Family) -> list[tuple[float, float]]:
    return [
        (float(line.labels["le"]), line.value)
        for line in family.samples
        if line.name.endswith("_bucket")
    ]


def batch_of(*requests: Request, started_s: float, expected_s: float | None = None) -> Batch:
    rows = sum(request.rows for request in requests)
    return Batch(
        0, 0, list(requests), rows, DispatchReason.IMMEDIATE, started_s, started_s, expected_s
    )


def run_everything(metrics: PrometheusMetrics, deployment: Deployment) -> None:
    """Make every family have at least one sample."""
    request = Request(1, None, rows=4, nbytes=64, arrival_s=10.0)
    batch = batch_of(request, started_s=10.02, expected_s=0.1)
    batch.ran_s = 0.2
    deployment.workers[0] = WorkerState.READY
    metrics.batch_dispatched(deployment, batch, 10.02)
    metrics.batch_completed(deployment, batch, BatchTiming(1_000_000, 38_000_000, 1_000_000), 10.22)
    metrics.request_refused(deployment, request, Reason.QUEUE_FULL, 11.0)
    metrics.call_invalid("", Reason.UNKNOWN_MODEL)
    metrics.worker_state_changed(deployment, 0, WorkerState.LOST)


async def test_exported_families_are_exactly_those_in_the_list_of_names(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    run_everything(metrics, deployment)
    exported = families(metrics)
    assert set(exported) == {metric.name for metric in names.ALL}
    for metric in names.ALL:
        family = exported[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert family.samples
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


async def test_a_server_without_models_exports_the_same_families(
    metrics: PrometheusMetrics,
) -> None:
    assert set(families(metrics)) == {metric.name for metric in names.ALL}


@pytest.mark.parametrize("metric", names.ALL, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric: names.Metric) -> None:
    assert re.fullmatch(r"headrace(_[a-z]+)+", metric.name)
    assert not re.search(r"_(ms|us|ns|millis|micros|kb|mb|percent|total|count|sum)\b", metric.name)
    if "_duration" in metric.name:
        assert metric.name.endswith(("_duration_seconds", "_ratio"))
    assert not {"le", "quantile", "job", "instance"} & set(metric.labels)
    assert metric.help.endswith(".")
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_every_constant_of_the_list_is_in_it() -> None:
    constants = [value for value in vars(names).values() if isinstance(value, names.Metric)]
    listed = (*names.ALL, *names.ALL_OF_GPUS)
    assert sorted(constants, key=lambda m: m.name) == sorted(listed, key=lambda m: m.name)


async def test_buckets_cumulate_up_to_the_count(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    durations_s = (0.0004, 0.003, 0.003, 99.0)
    for duration_s in durations_s:
        batch = batch_of(Request(1, None, 1, 4, arrival_s=5.0), started_s=5.0)
        metrics.batch_completed(deployment, batch, BatchTiming(0, 0, 0), 5.0 + duration_s)
    found = buckets(families(metrics)["headrace_request_duration_seconds"])
    assert [bound for bound, _ in found] == [*names.SECONDS, math.inf]
    for bound, count in found:
        assert count == sum(duration_s <= bound for duration_s in durations_s)
    assert value(metrics, "headrace_request_duration_seconds_count", DIGITS) == 4
    total = value(metrics, "headrace_request_duration_seconds_sum", DIGITS)
    assert total == pytest.approx(sum(durations_s))


async def test_a_value_on_a_bound_counts_below_it(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    batch = batch_of(Request(1, None, rows=8, nbytes=4, arrival_s=0.0), started_s=0.0)
    metrics.batch_completed(deployment, batch, BatchTiming(0, 0, 0), 1.0)
    found = dict(buckets(families(metrics)["headrace_batch_rows"]))
    assert (found[4.0], found[8.0]) == (0, 1)


async def test_a_batch_is_counted_in_the_parts_it_took(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    run_everything(metrics, deployment)
    for name, expected in (
        ("headrace_request_duration_seconds", 0.22),
        ("headrace_queue_duration_seconds", 0.02),
        ("headrace_compute_duration_seconds", 0.04),
        ("headrace_batch_rows", 4),
        ("headrace_batch_padding_ratio", 0.0),
        ("headrace_batch_duration_prediction_ratio", 0.5),
    ):
        assert value(metrics, f"{name}_sum", DIGITS) == pytest.approx(expected)
        assert value(metrics, f"{name}_count", DIGITS) == 1
    dispatched = {**DIGITS, "reason": "immediate"}
    assert value(metrics, "headrace_dispatches_total", dispatched) == 1


async def test_a_request_nobody_waits_for_counts_as_cancelled_and_not_as_answered(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    answered, cancelled = (Request(i, None, 1, 4, arrival_s=0.0) for i in range(2))
    cancelled.cancelled = True
    metrics.request_cancelled(deployment, cancelled, 0.5)
    batch = batch_of(answered, cancelled, started_s=0.1)
    metrics.batch_completed(deployment, batch, BatchTiming(0, 0, 0), 1.0)
    assert value(metrics, "headrace_requests_total", {**DIGITS, "outcome": "ok"}) == 1
    assert value(metrics, "headrace_requests_total", {**DIGITS, "outcome": "cancelled"}) == 1
    assert value(metrics, "headrace_refusals_total", {**DIGITS, "reason": "cancelled"}) is None
    assert value(metrics, "headrace_request_duration_seconds_count", DIGITS) == 1


async def test_a_request_that_ends_without_the_answer_of_its_batch_counts_by_its_reason(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    answered, failed = (Request(i, None, 1, 4, arrival_s=0.0) for i in range(2))
    failed.failed = Reason.REGION_UNUSABLE
    batch = batch_of(answered, failed, started_s=0.1)
    metrics.batch_completed(deployment, batch, BatchTiming(0, 0, 0), 1.0)
    for outcome in ("ok", "region_unusable"):
        assert value(metrics, "headrace_requests_total", {**DIGITS, "outcome": outcome}) == 1
    refused = {**DIGITS, "reason": "region_unusable"}
    assert value(metrics, "headrace_refusals_total", refused) == 1
    assert value(metrics, "headrace_request_duration_seconds_count", DIGITS) == 1


async def test_a_refusal_counts_by_its_reason_as_an_outcome_and_as_a_refusal(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    request = Request(1, None, 1, 4, arrival_s=0.0)
    for reason in (Reason.QUEUE_FULL, Reason.QUEUE_FULL, Reason.WORKER_LOST):
        metrics.request_refused(deployment, request, reason, 1.0)
    metrics.call_invalid("digits", Reason.WRONG_SHAPE)
    assert value(metrics, "headrace_requests_total", {**DIGITS, "outcome": "queue_full"}) == 2
    assert value(metrics, "headrace_refusals_total", {**DIGITS, "reason": "queue_full"}) == 2
    assert value(metrics, "headrace_refusals_total", {**DIGITS, "reason": "worker_lost"}) == 1
    invalid = {"model": "digits", "version": "", "reason": "wrong_shape"}
    assert value(metrics, "headrace_refusals_total", invalid) == 1


async def test_workers_are_counted_in_every_state_there_is(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    deployment.workers = {0: WorkerState.READY, 1: WorkerState.READY, 2: WorkerState.LOST}
    metrics.worker_state_changed(deployment, 2, WorkerState.LOST)
    for state in WorkerState:
        expected = {WorkerState.READY: 2, WorkerState.LOST: 1}.get(state, 0)
        assert value(metrics, "headrace_workers", {**DIGITS, "state": state.value}) == expected
    assert value(metrics, "headrace_worker_restarts_total", DIGITS) == 1


async def test_counts_go_on_when_a_model_is_loaded_again(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    run_everything(metrics, deployment)
    again = Deployment("digits", 7, IdleExecutor(), rules, LoopClock(), Observer())
    metrics.deployment_added(again)
    assert value(metrics, "headrace_requests_total", {**DIGITS, "outcome": "ok"}) == 1


async def test_workers_of_all_loads_are_counted_until_the_last_one_has_ended(
    metrics: PrometheusMetrics, deployment: Deployment
) -> None:
    again = Deployment("digits", 7, IdleExecutor(), rules, LoopClock(), Observer())
    metrics.deployment_added(again)
    deployment.workers = {0: WorkerState.READY}
    again.workers = {0: WorkerState.READY}
    ready = {**DIGITS, "state": "ready"}
    assert value(metrics, "headrace_workers", ready) == 2
    metrics.deployment_removed(deployment)
    assert value(metrics, "headrace_workers", ready) == 1
    metrics.deployment_removed(again)
    assert not families(metrics)["headrace_workers"].samples


async def test_the_release_is_a_label(metrics: PrometheusMetrics) -> None:
    assert value(metrics, "headrace_build_info", {"release": RELEASE}) == 1


@pytest.fixture
def endpoint(metrics: PrometheusMetrics) -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(metrics)
    yield endpoint
    endpoint.stop()


def test_the_endpoint_answers_a_scrape(endpoint: MetricsEndpoint) -> None:
    port = endpoint.start("127.0.0.1", 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert f'headrace_build_info{{release="{RELEASE}"}} 1.0' in text


def test_a_probe_may_ask_for_any_name(metrics: PrometheusMetrics) -> None:
    asked: list[str] = []

    def probe(path: str) -> HTTPStatus:
        asked.append(path)
        return HTTPStatus.OK

    endpoint = MetricsEndpoint(metrics, probe=probe)
    try:
        port = endpoint.start("127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}/v2/models/%C3%A9%2B%F0%9F%99%82/ready"
        with urllib.request.urlopen(url, timeout=10):
            assert asked == ["/v2/models/é+🙂/ready"]
    finally:
        endpoint.stop()


def test_whoever_comes_to_scrape_is_served_however_many_say_nothing(
    endpoint: MetricsEndpoint,
) -> None:
    port = endpoint.start("127.0.0.1", 0)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS)]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        assert response.status == 200
    silent[0].settimeout(10)
    assert silent[0].recv(1) == b"", "the oldest made room"
    silent[-1].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert silent[-1].recv(16).startswith(b"HTTP/1.0 200")
    for one in silent:
        one.close()


def test_a_metrics_port_in_use_is_refused_with_the_address(
    metrics: PrometheusMetrics, endpoint: MetricsEndpoint
) -> None:
    port = endpoint.start("127.0.0.1", 0)
    with pytest.raises(MetricsPortError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
        MetricsEndpoint(metrics).start("127.0.0.1", port)

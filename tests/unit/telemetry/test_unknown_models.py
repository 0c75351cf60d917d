"""Callers cannot make up label values, whatever they ask for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client.core import CounterMetricFamily

from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.engine.engine import Engine
from headrace_server.engine.observer import ObserverGroup
from headrace_server.engine.statistics import Statistics
from headrace_server.telemetry import names
from headrace_server.telemetry.metrics import PrometheusMetrics
from headrace_server.transport.grpc_server import GrpcServer
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics("test")


@pytest.fixture
async def stub(metrics: PrometheusMetrics) -> AsyncIterator[rpc.GRPCInferenceServiceAsyncStub]:
    statistics = Statistics(time.time)
    engine = Engine(ObserverGroup(statistics, metrics))
    service = InferenceService(engine, statistics, lambda deployment: ModelConfig(), "test")
    server = GrpcServer(service, HealthReporter())
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield rpc.GRPCInferenceServiceStub(channel)
    await server.stop(0)


async def test_names_of_models_that_are_not_served_never_become_labels(
    stub: rpc.GRPCInferenceServiceAsyncStub, metrics: PrometheusMetrics
) -> None:
    for attempt in range(3):
        request = pb.ModelInferRequest(model_name=f"made-up-{attempt}", model_version=str(attempt))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ModelInfer(request)
    refusals = next(family for family in metrics.collect() if family.name == names.REFUSALS.name)
    assert isinstance(refusals, CounterMetricFamily)
    assert [(sample.labels, sample.value) for sample in refusals.samples] == [
        ({"model": "", "version": "", "reason": "unknown_model"}, 3)
    ]

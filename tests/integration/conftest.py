"""A real gRPC server on a free port of this process, its models run inline."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.last_minute import LastMinute
from headrace_server.engine.observer import ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.statistics import Statistics
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.completion import complete_config
from headrace_server.telemetry.metrics import PrometheusMetrics
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.grpc_server import GrpcServer
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.transport.regions import RegionTable
from headrace_server.workers.inline_executor import InlineExecutor
from summing_model import Sums


class Served:
    """What a test may look at: the engine, the stub, and what was observed."""

    def __init__(self, address: str, engine: Engine, metrics: PrometheusMetrics) -> None:
        self.address = address
        self.engine = engine
        self.metrics = metrics
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = rpc.GRPCInferenceServiceStub(self.channel)

    async def also_serve(self, name: str, **settings: Any) -> None:
        """Serve the model under one more name; the settings are those of `BatchingSettings`."""
        deployment = deployment_of(name, 1, self.engine, **settings)
        self.engine.add(deployment)
        await deployment.load()


def deployment_of(name: str, version: int, engine: Engine, **settings: Any) -> Deployment:
    return Deployment(
        name,
        version,
        InlineExecutor(Sums),
        lambda spec: SchedulingRules(
            BatchingSettings(spec.max_batch_size, **settings), max_requests=100, max_bytes=1 << 20
        ),
        LoopClock(),
        engine.observer,
    )


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest.fixture
async def sharing() -> AsyncIterator[Served]:
    """As `served`, with memory that clients may share: 4,096 bytes a request."""
    async with serving(regions=RegionTable(), max_span_bytes=4_096) as served:
        yield served


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Served]:
    """A server of `Sums`; the options are those of `InferenceService`."""
    statistics, metrics, health = Statistics(time.time), PrometheusMetrics("test"), HealthReporter()
    last_minute = LastMinute()
    engine = Engine(ObserverGroup(statistics, metrics, last_minute, health))
    deployment = deployment_of("sums", 3, engine)
    engine.add(deployment)
    engine.add_broken("broken", "", "its file is missing")
    health.watch(engine)
    await deployment.load()
    server = GrpcServer(
        InferenceService(
            engine, statistics, lambda d: complete_config(d.spec, None), "test", **options
        ),
        ExplanationService(engine, last_minute, LoopClock().now),
        health,
    )
    port = await server.start("127.0.0.1", 0)
    served = Served(f"127.0.0.1:{port}", engine, metrics)
    yield served
    await served.channel.close()
    await server.stop(0)
    await engine.stop()

"""Sets the stage for stream tests: a real gRPC server whose batches the test completes by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from doubles import PuppetExecutor
from engine_stage import spec_of
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.last_minute import LastMinute
from headrace_server.engine.observer import Observer, ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.statistics import Statistics
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.completion import complete_config
from headrace_server.models.spec import TensorSpec
from headrace_server.rpc.server import DEFAULT_LIMITS as GRPC_LIMITS
from headrace_server.rpc.server import RpcLimits
from headrace_server.telemetry.metrics import PrometheusMetrics
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.gate import Gate
from headrace_server.transport.grpc_server import GrpcServer
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.transport.infer_stream import DEFAULT_LIMITS, StreamLimits
from headrace_server.transport.regions import RegionTable
from headrace_server.transport.tenants import Tenants

WORKERS = 8


class Stage:
    """A server whose model gives every input back, each request in a batch of its own, on
    `WORKERS` workers. Requests are told apart by the value that they repeat."""

    def __init__(
        self,
        limits: StreamLimits = DEFAULT_LIMITS,
        grpc_limits: RpcLimits = GRPC_LIMITS,
        gate: tuple[Callable[[], Tenants], Callable[[], float]] | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.metrics = PrometheusMetrics("test")
        statistics, health = Statistics(time.time), HealthReporter()
        last_minute = LastMinute()
        self.engine = Engine(
            ObserverGroup(statistics, self.metrics, last_minute, health, *observers)
        )
        spec = spec_of(
            max_batch_size=0,
            x=TensorSpec("x", "UINT8", [-1, 2]),
            y=TensorSpec("y", "UINT8", [-1, 2]),
        )
        self.workers = PuppetExecutor(spec, workers=WORKERS)
        self.deployment = Deployment(
            "model",
            1,
            self.workers,
            lambda _: SchedulingRules(BatchingSettings(0), max_requests=100, max_bytes=1 << 20),
            LoopClock(),
            self.engine.observer,
        )
        self.engine.add(self.deployment)
        guard = (
            None if gate is None else Gate(*(gate[0], self.engine, gate[1]), max_span_bytes=1 << 20)
        )
        health.watch(self.engine)
        self.server = GrpcServer(
            InferenceService(
                self.engine,
                statistics,
                lambda d: complete_config(d.spec, None),
                "test",
                stream_limits=limits,
                gate=guard,
                regions=RegionTable(),
                max_span_bytes=1 << 20,
            ),
            ExplanationService(self.engine, last_minute, LoopClock().now, guard),
            health,
            limits=grpc_limits,
            gate=guard,
        )

    async def start(self) -> None:
        await self.deployment.load()
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1', 0)}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = rpc.GRPCInferenceServiceStub(self.channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.engine.stop()

    def stream(self, metadata: Any = (), **options: Any) -> Any:
        return self.stub.ModelStreamInfer(metadata=metadata, **options)

    async def taken(self, count: int) -> None:
        """Wait until so many requests have reached workers."""
        await until(lambda: len(self.workers.batches) >= count)

    def complete(self, value: int) -> None:
        """The worker that runs the request with this value answers it."""
        self.workers.complete(self._held()[value])

    def fail(self, value: int) -> None:
        self.workers.fail(self._held()[value])

    def counted(self, family: str, **labels: str) -> float:
        """The sum of the family's samples with these labels."""
        return sum(
            sample.value
            for found in self.metrics.collect()
            for sample in found.samples
            if sample.name == family and labels.items() <= sample.labels.items()
        )

    def cancelled(self) -> float:
        return self.counted("headrace_requests_total", outcome="cancelled")

    def held_values(self) -> set[int]:
        """Of the requests that workers run."""
        return set(self._held())

    def _held(self) -> dict[int, int]:
        """Batches by the value that their request repeats."""
        held = [batch for batches in self.workers.held.values() for batch in batches]
        return {(self.workers.batches[batch][0].data[0] or b"?")[0]: batch for batch in held}


def request(value: int, model: str = "model", rows: int = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, id=f"id {value}")
    message.inputs.add(name="x", datatype="UINT8", shape=[rows, 2])
    message.raw_input_contents.append(bytes([value] * 2 * rows))
    return message


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)

"""Loading and unloading over the wire: what is understood, what is refused, what clients see."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.aio import AsyncClient
from headrace.errors import InvalidRequest, NotFound, Unavailable
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.last_minute import LastMinute
from headrace_server.engine.model_control import ModelControl
from headrace_server.engine.observer import ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.statistics import Statistics
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.completion import complete_config
from headrace_server.models.repository import ModelEntry, ModelSource
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.grpc_server import GrpcServer
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.workers.inline_executor import InlineExecutor
from summing_model import Sums

NAME = "sums"


class Controlled:
    """A real server in explicit mode over a directory with one model, not loaded yet."""

    def __init__(self, repository: Path) -> None:
        statistics, health, minute = Statistics(time.time), HealthReporter(), LastMinute()
        self.engine = Engine(ObserverGroup(statistics, health, minute))
        control = ModelControl(repository, "explicit", self.engine, self._deploy, 1)
        health.watch(self.engine)
        self.server = GrpcServer(
            InferenceService(
                self.engine,
                statistics,
                lambda d: complete_config(d.spec, control.config_of(d)),
                "test",
                control=control,
            ),
            ExplanationService(self.engine, minute, LoopClock().now),
            health,
        )

    def _deploy(self, entry: ModelEntry, source: ModelSource, cores: int) -> Deployment:
        return Deployment(
            source.name,
            source.version,
            InlineExecutor(Sums),
            lambda spec: SchedulingRules(BatchingSettings(spec.max_batch_size), 100, 1 << 20),
            LoopClock(),
            self.engine.observer,
        )

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1', 0)}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = rpc.GRPCInferenceServiceStub(self.channel)
        self.client = AsyncClient(self.address)

    async def stop(self) -> None:
        await self.client.close()
        await self.channel.close()
        await self.server.stop(0)
        await self.engine.stop()

    async def health_of(self, service: str) -> int | None:
        health = health_pb2_grpc.HealthStub(self.channel)
        try:
            return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
        except grpc.aio.AioRpcError:
            return None


@pytest.fixture
async def controlled(tmp_path: Path) -> AsyncIterator[Controlled]:
    (tmp_path / NAME / "3").mkdir(parents=True)
    (tmp_path / NAME / "3" / "model.py").touch()
    controlled = Controlled(tmp_path)
    await controlled.start()
    yield controlled
    await controlled.stop()


async def test_models_come_and_go_as_clients_say(controlled: Controlled) -> None:
    client = controlled.client
    serving = health_pb2.HealthCheckResponse.SERVING
    gone = health_pb2.HealthCheckResponse.NOT_SERVING
    assert [(row.name, row.version, row.state) for row in await client.index()] == [(NAME, "", "")]
    assert await client.server_ready()
    assert not await client.model_ready(NAME)
    inputs = {"a": np.ones((1, 2), np.float32), "tags": [[b"t"]]}
    for _ in range(2):
        await client.load_model(NAME)
        assert await client.model_ready(NAME)
        assert await controlled.health_of(NAME) == serving
        assert (await client.infer(NAME, inputs))["sum"].tolist() == [[1.0, 1.0]]
        (counted,) = await client.statistics(NAME)
        assert counted.success.count == 1, "each load counts anew"
        assert (await client.explain(NAME)).last_minute.batches == 1
    await client.unload_model(NAME)
    assert not await client.model_ready(NAME)
    with pytest.raises(Unavailable, match=f"unknown model: '{NAME}' has no available versions"):
        await client.infer(NAME, inputs, timeout=1.0)
    assert await controlled.health_of(NAME) == gone
    assert await client.server_ready()
    assert await client.index(ready_only=True) == []
    assert await client.statistics() == []


async def test_a_configuration_comes_as_text_or_as_a_mapping(controlled: Controlled) -> None:
    client = controlled.client
    wanted = {"parameters": {"objective_ms": {"string_value": "50"}}}
    for config in (wanted, json.dumps(wanted)):
        await client.load_model(NAME, config=config)
        told = await client.model_config(NAME)
        assert told.parameters["objective_ms"].string_value == "50"
    with pytest.raises(InvalidRequest, match=r"parameter 'config' for model 'sums'.*expected JSON"):
        await client.load_model(NAME, config="max_batch_size: 3")
    with pytest.raises(InvalidRequest, match=r"load failed for model 'sums'.*sequence_batching"):
        await client.load_model(NAME, config={"sequence_batching": {}})
    assert await client.model_ready(NAME)


async def test_what_is_not_there_is_refused_by_name(controlled: Controlled) -> None:
    with pytest.raises(NotFound, match="failed to load 'no/body', failed to poll from model"):
        await controlled.client.load_model("no/body")
    with pytest.raises(NotFound, match="unknown model: 'nobody' is not found"):
        await controlled.client.unload_model("nobody")


@pytest.mark.parametrize(
    ("key", "value", "code", "text"),
    [
        ("file:3/model.py", {"bytes_param": b"x"}, "UNIMPLEMENTED", "parameter 'file:3/model.py'"),
        ("config", {"int64_param": 3}, "INVALID_ARGUMENT", "expected 'config' with JSON text"),
        ("colour", {"string_param": "red"}, "INVALID_ARGUMENT", "parameter 'colour'"),
    ],
)
async def test_other_parameters_of_a_load_are_refused(
    controlled: Controlled, key: str, value: dict[str, object], code: str, text: str
) -> None:
    request = pb.RepositoryModelLoadRequest(model_name=NAME)
    request.parameters[key].CopyFrom(pb.ModelRepositoryParameter(**value))  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await controlled.stub.RepositoryModelLoad(request)
    assert refused.value.code().name == code
    assert text in (refused.value.details() or "")


async def test_parameters_of_an_unload(controlled: Controlled) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name=NAME)
    request.parameters["unload_dependents"].bool_param = True
    await controlled.stub.RepositoryModelUnload(request)
    request.parameters["unload_dependents"].string_param = "yes"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await controlled.stub.RepositoryModelUnload(request)
    assert "expected 'unload_dependents', true or false" in (refused.value.details() or "")


async def test_there_is_one_repository_without_a_name(controlled: Controlled) -> None:
    stub = controlled.stub
    for call in (
        stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="r")),
        stub.RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(repository_name="r", model_name=NAME)
        ),
        stub.RepositoryModelUnload(
            pb.RepositoryModelUnloadRequest(repository_name="r", model_name=NAME)
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

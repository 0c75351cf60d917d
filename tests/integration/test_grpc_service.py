"""The gRPC services over a real channel: answers, metadata, statistics, health, reflection."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from headrace.protocol import grpc_service_pb2 as pb

if TYPE_CHECKING:
    from conftest import Served

SLOW = 1e7
"""A first value that the model of these tests takes 0.2 s for."""


def request(rows: int, first: float = 0.0) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="sums", id=f"id-{first}")
    message.inputs.add(name="a", datatype="FP32", shape=[rows, 2])
    message.inputs.add(name="tags", datatype="BYTES", shape=[rows, 1])
    values = [first + i for i in range(2 * rows)]
    message.inputs[0].contents.fp32_contents.extend(values)
    message.inputs[1].contents.bytes_contents.extend(f"{first}".encode() for _ in range(rows))
    return message


async def test_typed_contents_optional_inputs_and_bytes_are_answered(served: Served) -> None:
    message = request(2)
    message.inputs.add(name="b", datatype="FP32", shape=[2, 2])
    message.inputs[2].contents.fp32_contents.extend([10, 20, 30, 40])
    response = await served.stub.ModelInfer(message)
    assert (response.model_name, response.model_version, response.id) == ("sums", "3", "id-0.0")
    assert struct.unpack("<4f", response.raw_output_contents[0]) == (10, 21, 32, 43)
    assert response.raw_output_contents[1] == (struct.pack("<I", 3) + b"0.0") * 2
    assert [o.name for o in response.outputs] == ["sum", "again"]
    assert [o.datatype for o in response.outputs] == ["FP32", "BYTES"]


async def test_outputs_come_in_the_order_asked_for(served: Served) -> None:
    message = request(1)
    message.outputs.add(name="again")
    message.outputs.add(name="sum")
    response = await served.stub.ModelInfer(message)
    assert [o.name for o in response.outputs] == ["again", "sum"]
    assert len(response.raw_output_contents) == 2
    assert len(response.raw_output_contents[1]) == 8


async def test_custom_parameters_reach_the_model_by_row(served: Served) -> None:
    messages = [request(1, 1.0), request(2, 2.0)]
    messages[0].parameters["mine"].int64_param = 5
    one, two = await asyncio.gather(*(served.stub.ModelInfer(m) for m in messages))
    assert b"1.0{'mine': 5}" in one.raw_output_contents[1]
    assert b"mine" not in two.raw_output_contents[1]


async def test_caller_that_asks_is_told_how_its_batch_went(served: Served) -> None:
    message = request(2)
    message.parameters["headrace_timing"].bool_param = True
    response = await served.stub.ModelInfer(message)
    told = {name: value.int64_param for name, value in response.parameters.items()}
    assert told["headrace_batch_rows"] == 2
    assert told["headrace_queue_us"] >= 0
    assert told["headrace_compute_us"] > 0
    assert b"headrace" not in response.raw_output_contents[1], "that is not the model's business"
    assert not (await served.stub.ModelInfer(request(1))).parameters


async def test_concurrent_requests_each_get_their_own_rows_and_are_counted(
    served: Served,
) -> None:
    rows = [1, 3, 2, 1, 4, 1, 2, 8, 1, 1] * 5
    responses = await asyncio.gather(
        *(served.stub.ModelInfer(request(n, 100.0 * i)) for i, n in enumerate(rows))
    )
    for i, (n, response) in enumerate(zip(rows, responses, strict=True)):
        expected = tuple(100.0 * i + j for j in range(2 * n))
        assert struct.unpack(f"<{2 * n}f", response.raw_output_contents[0]) == expected
    statistics = await served.stub.ModelStatistics(pb.ModelStatisticsRequest(name="sums"))
    (counts,) = statistics.model_stats
    assert counts.inference_count == sum(rows)
    assert counts.inference_stats.success.count == len(rows)
    assert counts.execution_count <= len(rows)
    assert sum(b.batch_size * b.compute_infer.count for b in counts.batch_stats) == sum(rows)
    assert counts.last_inference > 0


async def test_call_that_outlasts_its_deadline_is_deadline_exceeded(
    served: Served,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ModelInfer(request(1, SLOW), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_cancelled_call_leaves_its_neighbours_alone(served: Served) -> None:
    calls = [served.stub.ModelInfer(request(1, float(i))) for i in range(8)]
    calls[3].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    for i, result in enumerate(results):
        if i != 3:
            assert isinstance(result, pb.ModelInferResponse)
            assert struct.unpack("<2f", result.raw_output_contents[0])[0] == i


async def test_metadata_config_and_index_describe_the_model(served: Served) -> None:
    metadata = await served.stub.ModelMetadata(pb.ModelMetadataRequest(name="sums"))
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("a", "FP32", [-1, 2]),
        ("b", "FP32", [-1, 2]),
        ("tags", "BYTES", [-1, -1]),
    ]
    assert list(metadata.versions) == ["3"]
    config = (await served.stub.ModelConfig(pb.ModelConfigRequest(name="sums"))).config
    assert config.max_batch_size == 8
    assert [i.name for i in config.input] == ["a", "b", "tags"]
    index = await served.stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(m.name, m.version, m.state, m.reason) for m in index.models] == [
        ("broken", "", "UNAVAILABLE", "its file is missing"),
        ("sums", "3", "READY", ""),
    ]
    ready = await served.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [m.name for m in ready.models] == ["sums"]


async def test_server_reports_only_extensions_that_work(served: Served) -> None:
    metadata = await served.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "headrace"
    assert list(metadata.extensions) == [
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "parameters",
        "statistics",
        "headrace_stream",
    ]


async def test_rpcs_of_other_extensions_are_refused_honestly(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="sums"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "explicit model load / unload is not allowed" in (caught.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_speaks_for_the_server_and_for_each_model(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    for service in ("", "inference.GRPCInferenceService", "sums"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="sums"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    # Another one who watches the same, and leaves, takes nobody's news along.
    other = stub.Watch(health_pb2.HealthCheckRequest(service="sums"))
    assert (await other.read()).status == health_pb2.HealthCheckResponse.SERVING
    other.cancel()
    assert (
        await stub.Check(health_pb2.HealthCheckRequest(service="broken"))
    ).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await served.engine.drain(1.0)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_who_watches_the_server_learns_what_who_asks_is_told(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest()
    for model in ("sums", "broken"):
        served.engine.switch(model, [])
    async with asyncio.timeout(10):
        while any(served.engine.deployments()):
            await asyncio.sleep(0)
        watch = stub.Watch(request)
        for change in (
            lambda: None,
            lambda: served.engine.add_broken("other", "", "its directory is empty"),
            lambda: served.engine.switch("other", []),
        ):
            change()
            told = (await watch.read()).status
            assert told == (await stub.Check(request)).status
    watch.cancel()


async def test_reflection_describes_every_service(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    ask = reflection_pb2.ServerReflectionRequest
    asked = [
        ask(list_services=""),
        ask(file_containing_symbol="inference.GRPCInferenceService"),
        ask(file_containing_symbol="grpc.health.v1.Health"),
        ask(file_containing_symbol="headrace.v1.ExplanationService"),
    ]
    listed, *described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert {s.name for s in listed.list_services_response.service} == {
        "inference.GRPCInferenceService",
        "headrace.v1.ExplanationService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = [
        FileDescriptorProto.FromString(data)
        for answer in described
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    services = {s.name for f in files for s in f.service}
    assert {"GRPCInferenceService", "ExplanationService", "Health"} <= services


async def test_calls_to_a_stopping_server_are_told_so(served: Served) -> None:
    await served.engine.drain(1.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ModelInfer(request(1))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Server is stopping" in (caught.value.details() or "")
    assert not (await served.stub.ModelReady(pb.ModelReadyRequest(name="sums"))).ready

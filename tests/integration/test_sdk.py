"""Both clients against a real gRPC server that echoes, refuses, hangs or recovers on request."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from headrace import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    IndexEntry,
    InferResult,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    RetryPolicy,
    ServerError,
    ServerMetadata,
    TensorMetadata,
    Unavailable,
    Unimplemented,
)
from headrace.errors import STATUS_TRAILER, pack_status
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace.protocol.model_config_pb2 import ModelConfig

Context = grpc.aio.ServicerContext[Any, Any]
Infer = Callable[..., Awaitable[InferResult]]
Ask = Callable[..., Awaitable[Any]]

QUICK = RetryPolicy(max_attempts=3, initial_backoff_s=0.001)
TYPES = {"floats": "FP32", "halves": "BF16", "counts": "INT64", "text": "BYTES"}


class EchoService(rpc.GRPCInferenceServiceServicer):
    """Gives every input back under its own name. The name of the model asks for more:

    `busy` is refused `refusals` times with a retry hint; `picky` refuses for good; `slow` never
    answers; `typed` answers with typed contents; `broken` with too few bytes.
    """

    def __init__(self) -> None:
        self.requests: list[pb.ModelInferRequest] = []
        self.metadata_calls = 0
        self.call_metadata: dict[str, str | bytes] = {}
        self.refusals = 0
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.time_remaining_s: float | None = None

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        self.requests.append(request)
        self.time_remaining_s = context.time_remaining()
        self.call_metadata = dict(context.invocation_metadata() or ())
        if request.model_name == "busy" and len(self.requests) <= self.refusals:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, "full", "queue_full", 0.001)
        if request.model_name == "picky":
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "no", "wrong_shape", None)
        if request.model_name == "slow":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        response = pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version or "1",
            id=request.id,
            parameters=request.parameters,
        )
        wanted = [output.name for output in request.outputs] or [i.name for i in request.inputs]
        pairs = zip(request.inputs, request.raw_input_contents, strict=True)
        given = {tensor.name: (tensor, raw) for tensor, raw in pairs}
        for name in wanted:
            tensor, raw = given[name]
            output = response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            if request.model_name == "typed":
                output.contents.fp32_contents.extend(np.frombuffer(raw, dtype="<f4"))
            else:
                response.raw_output_contents.append(raw[request.model_name == "broken" :])
        return response

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        self.metadata_calls += 1
        response = pb.ModelMetadataResponse(name=request.name, versions=["1", "2"], platform="echo")
        for name, datatype in TYPES.items():
            response.inputs.add(name=name, datatype=datatype, shape=[-1])
            response.outputs.add(name=name, datatype=datatype, shape=[-1])
        return response

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=False)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> Any:
        return pb.ModelReadyResponse(ready=(request.name, request.version) == ("echo", "2"))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> Any:
        return pb.ServerMetadataResponse(name="echo", version="7", extensions=["statistics"])

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> Any:
        return pb.ModelConfigResponse(config=ModelConfig(name=request.name, max_batch_size=8))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> Any:
        response = pb.ModelStatisticsResponse()
        entry = response.model_stats.add(name=request.name, version="1", inference_count=5)
        entry.execution_count = 2
        entry.inference_stats.queue.count = 5
        entry.inference_stats.queue.ns = 900
        entry.batch_stats.add(batch_size=3).compute_infer.count = 2
        return response

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> Any:
        response = pb.RepositoryIndexResponse()
        response.models.add(name="echo", version="1", state="READY")
        if not request.ready:
            response.models.add(name="old", state="UNAVAILABLE", reason="unloaded")
        return response


async def refuse(
    context: Context,
    code: grpc.StatusCode,
    text: str,
    reason: str,
    retry_after_s: float | None,
) -> None:
    number: int = code.value[0]
    trailer = pack_status(number, text, reason, retry_after_s=retry_after_s)
    await context.abort(code, text, ((STATUS_TRAILER, trailer),))


class Echo:
    """A running `EchoService` and where it is."""

    def __init__(self, service: EchoService, address: str) -> None:
        self.service = service
        self.address = address


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    service = EchoService()
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Echo(service, f"127.0.0.1:{port}")
    await server.stop(None)


@pytest.fixture
async def client(echo: Echo) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(echo.address, retry=QUICK, timeout=30) as client:
        yield client


@pytest.fixture
async def blocking_client(echo: Echo) -> AsyncIterator[Client]:
    with Client(echo.address, retry=QUICK, timeout=30) as client:
        yield client


@pytest.fixture(params=["asyncio", "blocking"])
def infer(request: pytest.FixtureRequest, client: AsyncClient, blocking_client: Client) -> Infer:
    """`infer` of either client, as a coroutine function."""
    if request.param == "asyncio":
        return client.infer

    async def infer(*args: Any, **kwargs: Any) -> InferResult:
        return await asyncio.to_thread(blocking_client.infer, *args, **kwargs)

    return infer


ARRAYS = {
    "floats": np.array([[0.5, -1.0]], dtype=np.float32),
    "counts": np.array([2**62, -1]),
    "flags": np.array([True, False]),
    "text": np.array([[b"a\0", "ä"], [b"", "b"]], dtype=object),
}


async def test_arrays_come_back(client: AsyncClient) -> None:
    result = await client.infer(
        "echo", ARRAYS, version="3", request_id="r1", parameters={"a": 1, "b": True, "c": "x"}
    )
    assert (result.model_name, result.model_version, result.request_id) == ("echo", "3", "r1")
    assert result.parameters == {"a": 1, "b": True, "c": "x"}
    assert list(result) == list(ARRAYS)
    assert len(result) == 4
    for name in ("floats", "counts", "flags"):
        assert result[name].dtype == ARRAYS[name].dtype
        assert np.array_equal(result[name], ARRAYS[name])
    assert result["text"].tolist() == [[b"a\0", "ä".encode()], [b"", b"b"]]


async def test_arrays_come_back_to_a_blocking_client(blocking_client: Client) -> None:
    result = await asyncio.to_thread(
        blocking_client.infer, "echo", ARRAYS, outputs=["counts", "floats"]
    )
    assert list(result) == ["counts", "floats"]
    assert np.array_equal(result["counts"], ARRAYS["counts"])
    assert "text" not in result
    with pytest.raises(KeyError, match="no output 'text'; the answer holds counts, floats"):
        result["text"]


async def test_python_values_take_the_datatype_that_the_model_declares(
    infer: Infer, echo: Echo
) -> None:
    inputs: dict[str, Any] = {
        "floats": [1, 2.5],
        "halves": [0.5],
        "counts": [3],
        "text": ["ä", b"b"],
    }
    for _ in range(2):
        result = await infer("echo", inputs)
    assert [i.datatype for i in echo.service.requests[0].inputs] == list(TYPES.values())
    assert result["floats"].tolist() == [1.0, 2.5]
    assert result["text"].tolist() == ["ä".encode(), b"b"]
    assert echo.service.metadata_calls == 1


async def test_signature_is_asked_for_again_after_a_refusal(infer: Infer, echo: Echo) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            await infer("picky", {"floats": [1.0]})
    assert echo.service.metadata_calls == 2


async def test_arrays_alone_need_no_metadata(client: AsyncClient, echo: Echo) -> None:
    await client.infer("echo", {"a": np.float64(1.5), "b": np.zeros(2)})
    assert [i.datatype for i in echo.service.requests[0].inputs] == ["FP64", "FP64"]
    assert echo.service.metadata_calls == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"inputs": {"counts": [1.5]}}, "input 'counts' for model 'echo': expected INT64"),
        ({"inputs": {"other": [1]}}, "the model takes floats, halves, counts, text"),
        ({"inputs": {"a": np.array([1j])}}, "input 'a' for model 'echo': .* got complex128"),
        ({"inputs": {"a": np.array([None])}}, "input 'a' for model 'echo': .* got NoneType"),
        ({"inputs": {}, "parameters": {"p": 2**64}}, "parameter 'p': expected a bool"),
        ({"inputs": {}, "parameters": {"p": "\ud800"}}, "parameter 'p': expected text that"),
        ({"inputs": {}, "parameters": {"\ud800": 1}}, "expected text that UTF-8 can express"),
        ({"inputs": {}, "version": "\ud800"}, "expected text that UTF-8 can express"),
        ({"inputs": {}, "request_id": "\ud800"}, "expected text that UTF-8 can express"),
        ({"inputs": {}, "outputs": ["\ud800"]}, "expected text that UTF-8 can express"),
        ({"inputs": {"\ud800": np.zeros(1)}}, "expected text that UTF-8 can express"),
        ({"inputs": {"floats": [1]}, "version": "\ud800"}, "expected text that UTF-8 can express"),
        ({"inputs": {}, "timeout": math.nan}, "expected a timeout in seconds, got nan"),
        ({"inputs": {}, "priority": -1}, "expected a priority from 0"),
        ({"inputs": {}, "outputs": "a"}, "expected a sequence of names of outputs, got 'a'"),
    ],
)
async def test_arguments_that_make_no_request_are_refused_before_sending(
    infer: Infer, echo: Echo, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        await infer("echo", **arguments)
    assert echo.service.requests == []


@pytest.fixture(params=["asyncio", "blocking"])
def ask(request: pytest.FixtureRequest, client: AsyncClient, blocking_client: Client) -> Ask:
    """Any method of either client, by name, as a coroutine function."""

    async def ask(method: str, *args: Any, **kwargs: Any) -> Any:
        if request.param == "asyncio":
            return await getattr(client, method)(*args, **kwargs)
        return await asyncio.to_thread(getattr(blocking_client, method), *args, **kwargs)

    return ask


@pytest.mark.parametrize(
    "method",
    [
        *("model_ready", "model_metadata", "model_config", "statistics", "explain"),
        *("load_model", "unload_model"),
    ],
)
async def test_a_name_that_is_no_text_is_refused(ask: Ask, method: str) -> None:
    with pytest.raises(InvalidInput, match="expected text that UTF-8 can express"):
        await ask(method, "a\ud800")


@pytest.mark.parametrize(
    ("inputs", "options", "text"),
    [
        ({"x": np.ones((1, 1))}, {"version": 1}, "expected version as text, got 1"),
        ({"x": np.ones((1, 1))}, {"request_id": 5}, "expected request_id as text, got 5"),
        ({5: np.ones((1, 1))}, {}, "expected the name of an input as text, got 5"),
        ([np.ones((1, 1))], {}, "expected inputs by name, got a list"),
        ({"x": np.ones((1, 1))}, {"timeout": "1"}, "expected a timeout in seconds, got '1'"),
    ],
)
async def test_an_argument_of_another_type_is_named(
    ask: Ask, inputs: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        await ask("infer", "echo", inputs, **options)


async def test_a_version_that_is_a_number_is_named(ask: Ask) -> None:
    with pytest.raises(InvalidInput, match="expected version as text, got 1"):
        await ask("model_ready", "echo", 1)


async def test_a_configuration_that_is_no_text_is_refused(ask: Ask) -> None:
    with pytest.raises(InvalidInput, match="expected text that UTF-8 can express"):
        await ask("load_model", "echo", config="{\ud800}")


@pytest.mark.parametrize("client_class", [AsyncClient, Client])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"target": 8001}, "target: expected an address such as 'localhost:8001', got 8001"),
        ({"target": "\ud800:1"}, "target: expected text that UTF-8 can express"),
        ({"target": "http://a:1"}, "without a scheme, got 'http://a:1'$"),
        ({"target": "grpcs://a:1", "tls": True}, "without a scheme, got 'grpcs://a:1'$"),
        ({"target": "localhost"}, "expected an address with a port.*got 'localhost'"),
        ({"target": "[::1]"}, r"expected an address with a port.*got '\[::1\]'"),
        ({"target": ""}, "expected an address with a port.*got ''"),
        ({"target": "::1"}, "IPv6 in brackets, got '::1'"),
        ({"target": "fe80::1:8001", "tls": True}, "IPv6 in brackets, got 'fe80::1:8001'"),
        ({"target": "localhost:0"}, "expected a port from 1 to 65535, got 'localhost:0'"),
        ({"target": "[::1]:70000"}, r"expected a port from 1 to 65535, got '\[::1\]:70000'"),
        ({"target": f"a:{'9' * 5_000}"}, "expected a port from 1 to 65535, got 'a:999"),
        ({"target": "dns:///a:65536"}, "expected a port from 1 to 65535, got 'dns:///a:65536'"),
        ({"metadata": {"X-Team": "a"}}, "keys of lower-case letters.*got 'X-Team'"),
        ({"metadata": {"": "a"}}, "keys of lower-case letters.*got ''"),
        ({"metadata": {"x team": "a"}}, "keys of lower-case letters.*got 'x team'"),
        ({"metadata": {"x-team": "ä"}}, "'x-team': expected printable ASCII"),
        ({"metadata": {"x-team": "a\n"}}, "'x-team': expected printable ASCII"),
        ({"metadata": {"x-team": b"\xff"}}, "'x-team': expected printable ASCII"),
        ({"metadata": {"x-team": 5}}, "'x-team': expected str or bytes, got int"),
        ({"metadata": {"x-team-bin": "a"}}, "'x-team-bin': expected bytes, got str"),
    ],
)
async def test_what_no_call_could_be_made_with_makes_no_client(
    client_class: Callable[..., object], arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidInput, match=text):
        client_class(**arguments)


@pytest.mark.parametrize("client_class", [AsyncClient, Client])
@pytest.mark.parametrize(
    "arguments",
    [
        {"target": "unix:/tmp/socket"},
        {"target": "dns:///localhost:8001"},
        {"target": "[::1]:8001"},
        {"target": "localhost:65535"},
        {"target": "ipv4:127.0.0.1:8001,127.0.0.1:8002"},
        {"target": "models.example.com", "tls": True},
    ],
)
async def test_whatever_grpc_can_reach_is_an_address(
    client_class: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    client = client_class(**arguments)
    if client_class is AsyncClient:
        await client.close()
    else:
        client.close()


async def test_priority_parameters_and_metadata_travel(echo: Echo) -> None:
    metadata: dict[str, str | bytes] = {"x-team": "a ~", "x-key": b"b", "x-raw-bin": b"\xff\0"}
    async with AsyncClient(echo.address, metadata=metadata) as client:
        await client.infer("echo", {}, priority=2**63, parameters={"f": 0.5, "u": 2**64 - 1})
    parameters = echo.service.requests[0].parameters
    assert parameters["priority"].uint64_param == 2**63
    assert parameters["f"].double_param == 0.5
    assert parameters["u"].uint64_param == 2**64 - 1
    assert echo.service.call_metadata["x-team"] == "a ~"
    assert echo.service.call_metadata["x-key"] == "b"
    assert echo.service.call_metadata["x-raw-bin"] == b"\xff\0"


async def test_refusal_with_a_hint_is_tried_again(infer: Infer, echo: Echo) -> None:
    echo.service.refusals = 2
    result = await infer("busy", {"a": np.zeros(1)})
    assert result["a"].tolist() == [0.0]
    assert len(echo.service.requests) == 3


async def test_last_refusal_is_raised(infer: Infer, echo: Echo) -> None:
    echo.service.refusals = 9
    with pytest.raises(Unavailable, match="full") as raised:
        await infer("busy", {}, request_id="r7")
    error = raised.value
    assert (error.reason, error.retry_after_s, error.request_id) == ("queue_full", 0.001, "r7")
    assert isinstance(error.__cause__, grpc.RpcError)
    assert len(echo.service.requests) == QUICK.max_attempts


async def test_refusal_without_a_hint_is_not_tried_again(infer: Infer, echo: Echo) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await infer("picky", {})
    assert (raised.value.code, raised.value.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "wrong_shape",
    )
    assert len(echo.service.requests) == 1


async def test_method_the_server_lacks_is_unimplemented() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(Unimplemented):
            await client.server_live()
    await server.stop(None)


async def test_unreachable_server_is_unavailable_without_a_reason() -> None:
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(Unavailable) as raised:
            await client.server_live()
    assert raised.value.reason is None


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"<!DOCTYPE html>\n"])
async def test_a_port_where_no_grpc_is_spoken_is_told_so(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, AsyncClient(f"{host}:{port}", retry=QUICK) as client:
        with pytest.raises(
            Unavailable, match="is it the port of the metrics, or one that wants TLS"
        ):
            await client.server_live()


async def test_a_timeout_that_is_over_is_told_with_the_id_of_its_request(infer: Infer) -> None:
    with pytest.raises(DeadlineExceeded, match="the timeout of 0 s had passed") as raised:
        await infer("echo", {}, timeout=0, request_id="mine")
    assert raised.value.request_id == "mine"


async def test_timeout_is_the_deadline_of_the_call(infer: Infer, echo: Echo) -> None:
    with pytest.raises(DeadlineExceeded):
        await infer("slow", {}, timeout=0.1)
    await echo.service.cancelled.wait()


async def test_client_has_a_default_timeout_that_a_call_may_lift(
    client: AsyncClient, echo: Echo
) -> None:
    await client.infer("echo", {})
    assert echo.service.time_remaining_s is not None
    # gRPC rounds the deadline up on the wire: 30 s arrived as up to 30.1 s in 2,861 of 3,000 calls.
    assert 0 < echo.service.time_remaining_s < 31
    await client.infer("echo", {}, timeout=None)
    assert echo.service.time_remaining_s is None


async def test_cancelled_task_cancels_the_call_on_the_server(
    client: AsyncClient, echo: Echo
) -> None:
    task = asyncio.create_task(client.infer("slow", {}))
    await echo.service.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await echo.service.cancelled.wait()


async def test_closing_a_blocking_client_ends_its_calls(echo: Echo) -> None:
    client = Client(echo.address)
    call = asyncio.create_task(asyncio.to_thread(client.infer, "slow", {}))
    await echo.service.waiting.wait()
    client.close()
    with pytest.raises(Cancelled):
        await call


@pytest.mark.parametrize("multiplex", [False, True])
async def test_a_closed_client_cancels_every_call(echo: Echo, multiplex: bool) -> None:
    client, blocking = (
        AsyncClient(echo.address, multiplex=multiplex),
        Client(echo.address, multiplex=multiplex),
    )
    await client.infer("echo", {})
    await asyncio.to_thread(blocking.infer, "echo", {})
    await client.close()
    blocking.close()
    for call in (
        client.infer("echo", {}, request_id="r"),
        asyncio.to_thread(blocking.infer, "echo", {}, request_id="r"),
    ):
        with pytest.raises(Cancelled, match="the client is closed") as raised:
            await call
        error = raised.value
        assert (error.code, error.request_id) == (grpc.StatusCode.CANCELLED, "r")
    with pytest.raises(Cancelled, match="the client is closed"):
        await client.server_live()
    with pytest.raises(Cancelled, match="the client is closed"):
        await asyncio.to_thread(blocking.server_live)


PATIENT = RetryPolicy(initial_backoff_s=600, max_backoff_s=600)


async def test_closing_ends_the_pause_before_the_next_attempt(echo: Echo) -> None:
    echo.service.refusals = 9
    client, blocking = (made(echo.address, retry=PATIENT) for made in (AsyncClient, Client))
    calls = [
        asyncio.create_task(call)
        for call in (
            client.infer("busy", {}, timeout=None),
            asyncio.to_thread(blocking.infer, "busy", {}, timeout=None),
        )
    ]
    while len(echo.service.requests) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # the refusals have arrived
    await client.close()
    blocking.close()
    for call in calls:
        with pytest.raises(Cancelled, match="the client is closed"):
            await asyncio.wait_for(call, 10)


async def test_typed_answers_are_understood(infer: Infer) -> None:
    result = await infer("typed", {"a": np.array([[0.5, 2.0]], dtype=np.float32)})
    assert result["a"].tolist() == [[0.5, 2.0]]


async def test_answer_that_contradicts_itself_is_refused(infer: Infer) -> None:
    with pytest.raises(InvalidResponse, match=r"output 'a': expected 4 bytes .* got 3"):
        await infer("broken", {"a": np.zeros(1, dtype=np.float32)})


async def test_large_messages_pass(echo: Echo) -> None:
    options = (("grpc.max_receive_message_length", -1),)
    server = grpc.aio.server(options=options)
    rpc.add_GRPCInferenceServiceServicer_to_server(echo.service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    given = np.arange(2_000_000, dtype=np.float32)  # 8 MB; gRPC's own limit is 4 MiB
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        result = await client.infer("echo", {"a": given})
    assert np.array_equal(result["a"], given)
    await server.stop(None)


async def test_questions_about_the_server_and_its_models(client: AsyncClient) -> None:
    assert await client.server_live()
    assert not await client.server_ready()
    assert await client.model_ready("echo", "2")
    assert not await client.model_ready("echo")
    assert await client.server_metadata() == ServerMetadata("echo", "7", ("statistics",))
    metadata = await client.model_metadata("echo")
    assert (metadata.versions, metadata.platform) == (("1", "2"), "echo")
    assert metadata.inputs[0] == TensorMetadata("floats", "FP32", (-1,))
    assert (await client.model_config("echo")).max_batch_size == 8
    [statistics] = await client.statistics("echo")
    assert (statistics.inference_count, statistics.execution_count) == (5, 2)
    assert (statistics.queue.count, statistics.queue.ns) == (5, 900)
    assert [(b.batch_size, b.compute_infer.count) for b in statistics.batch_stats] == [(3, 2)]
    assert len(await client.index()) == 2
    assert await client.index(ready_only=True) == [IndexEntry("echo", "1", "READY", "")]


async def test_blocking_client_gives_the_same_answers(
    client: AsyncClient, blocking_client: Client
) -> None:
    for name, arguments in {
        "server_live": (),
        "server_ready": (),
        "model_ready": ("echo", "2"),
        "server_metadata": (),
        "model_metadata": ("echo",),
        "model_config": ("echo",),
        "statistics": ("echo",),
        "index": (),
    }.items():
        blocking = await asyncio.to_thread(getattr(blocking_client, name), *arguments)
        assert blocking == await getattr(client, name)(*arguments), name


async def test_both_clients_have_the_same_methods() -> None:
    def public(client: type) -> set[str]:
        return {name for name in vars(client) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_async_client_outside_of_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient()


async def test_async_client_finds_a_server_that_comes_back() -> None:
    service = EchoService()

    async def start(port: int) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server, port

    server, port = await start(0)
    patient = RetryPolicy(max_attempts=100, initial_backoff_s=0.05, max_backoff_s=0.05)
    async with AsyncClient(f"127.0.0.1:{port}", retry=patient) as client:
        await client.server_live()
        await server.stop(None)
        call = asyncio.create_task(client.server_live())
        with contextlib.suppress(ServerError):
            async with AsyncClient(f"127.0.0.1:{port}", retry=QUICK) as probe:
                await probe.server_live()
        server, _ = await start(port)
        assert await call
    await server.stop(None)


async def test_a_server_too_busy_to_greet_at_once_is_waited_for(echo: Echo) -> None:
    """Else each attempt to connect is given up and made again, which is more work for it."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        theirs, ours = await asyncio.open_connection(*echo.address.rsplit(":", 1))
        await asyncio.gather(forward(reader, ours), forward(theirs, writer))

    busy = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = busy.sockets[0].getsockname()
    async with AsyncClient(f"{host}:{port}", retry=RetryPolicy(max_attempts=1)) as client:
        assert await client.server_live()
    busy.close()

"""Multiplexed calls of both clients, over real channels: to our server and to others."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from headrace import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InferResult,
    InvalidRequest,
    NotFound,
    RetryPolicy,
    ServerError,
    Unavailable,
    Unimplemented,
)
from headrace.multiplexing import MAX_MESSAGE_BYTES, UNDER_LOAD
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from stream_stage import WORKERS, Stage, until

if TYPE_CHECKING:
    from conftest import Served

ONCE = RetryPolicy(max_attempts=1)
QUICK = RetryPolicy(max_attempts=4, initial_backoff_s=0.001)


class Caller:
    """Either client, as coroutines."""

    def __init__(self, kind: str, address: str, **options: Any) -> None:
        self.client = (AsyncClient if kind == "asyncio" else Client)(address, **options)
        self._threads = ThreadPoolExecutor(64)

    async def infer(self, *args: Any, **options: Any) -> InferResult:
        if isinstance(self.client, AsyncClient):
            return await self.client.infer(*args, **options)
        call = partial(self.client.infer, *args, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def close(self) -> None:
        done = self.client.close()
        if inspect.isawaitable(done):
            await done
        self._threads.shutdown(wait=False)

    async def streaming(self, *args: Any, **options: Any) -> None:
        """Call twice, alone: once for the model to answer, once for a stream to open beside it."""
        for _ in range(2):
            await self.infer(*args, **options)
        await until(lambda: self.client.open_streams == 1)


Connect = Callable[..., Caller]


@pytest.fixture(params=["asyncio", "blocking"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Make a caller of either kind: `connect(address, **options)`; closed in the end."""
    callers: list[Caller] = []

    def make(address: str, **options: Any) -> Caller:
        callers.append(Caller(request.param, address, **{"multiplex": True, **options}))
        return callers[-1]

    yield make
    for caller in callers:
        await caller.close()


# -- our server -----------------------------------------------------------------------------


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.start()
    yield stage
    await stage.stop()


def value(number: int) -> dict[str, Any]:
    return {"x": np.full((1, 2), number, np.uint8)}


async def streaming(stage: Stage, caller: Caller) -> None:
    """Have the caller's first call answered, and its stream opened."""
    first = asyncio.create_task(caller.infer("model", value(0)))
    await until(lambda: 0 in stage.held_values())
    stage.complete(0)
    await first
    second = asyncio.create_task(caller.infer("model", value(0)))  # opens it, and goes alone
    await until(lambda: 0 in stage.held_values())
    stage.complete(0)
    await second
    await until(lambda: caller.client.open_streams == 1)


async def held(stage: Stage, *numbers: int) -> None:
    await until(lambda: stage.held_values() >= set(numbers))


async def test_answers_come_to_their_own_callers_in_any_order(
    stage: Stage, connect: Connect
) -> None:
    caller = connect(stage.address)
    await streaming(stage, caller)
    calls = {
        n: asyncio.create_task(caller.infer("model", value(n), request_id="same"))
        for n in (1, 2, 3, 4)
    }
    await held(stage, 1, 2, 3, 4)
    for n in (3, 1, 4, 2):
        stage.complete(n)
        result = await calls[n]
        assert result["y"].tolist() == [[n, n]]
        assert (result.request_id, dict(result.parameters)) == ("same", {})


async def test_each_call_has_its_own_deadline(stage: Stage, connect: Connect) -> None:
    caller = connect(stage.address)
    await streaming(stage, caller)
    late = asyncio.create_task(caller.infer("model", value(1), timeout=0.1, request_id="late"))
    other = asyncio.create_task(caller.infer("model", value(2)))
    await held(stage, 1, 2)
    with pytest.raises(DeadlineExceeded) as raised:
        await late
    assert raised.value.request_id == "late"
    stage.complete(1)  # an answer that nobody waits for any more
    stage.complete(2)
    assert (await other)["y"].tolist() == [[2, 2]]
    assert caller.client.open_streams == 1


async def test_deadline_is_told_to_the_server(stage: Stage, connect: Connect) -> None:
    caller = connect(stage.address)
    await streaming(stage, caller)
    busy = [asyncio.create_task(caller.infer("model", value(n))) for n in range(1, 2 * WORKERS + 1)]
    await until(lambda: stage.deployment.queued_requests + len(stage.held_values()) == len(busy))
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await caller.infer("model", value(99), timeout=0.1)
    await until(lambda: stage.deployment.queued_requests + len(stage.held_values()) == len(busy))
    while not all(call.done() for call in busy):
        for n in stage.held_values():
            stage.complete(n)
        await asyncio.sleep(0.001)
    for n, call in enumerate(busy, 1):
        assert (await call)["y"].tolist() == [[n, n]]
    assert 99 not in {requests[0].data[0][0] for requests in stage.workers.batches.values()}  # type: ignore[index]


async def test_cancelled_call_is_cancelled_on_the_server_and_touches_no_other(
    stage: Stage,
) -> None:
    caller = Caller("asyncio", stage.address, multiplex=True)
    await streaming(stage, caller)
    calls = {n: asyncio.create_task(caller.infer("model", value(n))) for n in (1, 2, 3)}
    await held(stage, 1, 2, 3)
    calls[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[2]
    await until(lambda: stage.cancelled() == 1)
    for n in (1, 2, 3):
        stage.complete(n)
    for n in (1, 3):
        assert (await calls[n])["y"].tolist() == [[n, n]]
    assert caller.client.open_streams == 1
    await caller.close()


async def test_server_that_ends_mid_stream_fails_calls_like_a_broken_connection(
    stage: Stage, connect: Connect
) -> None:
    caller = connect(stage.address, retry=ONCE)
    await streaming(stage, caller)
    calls = [asyncio.create_task(caller.infer("model", value(n))) for n in (1, 2, 3)]
    await held(stage, 1, 2, 3)
    await stage.server.stop(0)
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, Unavailable)
    await until(lambda: caller.client.open_streams == 0)


async def test_closing_a_client_ends_its_calls(stage: Stage, connect: Connect) -> None:
    caller = connect(stage.address)
    await streaming(stage, caller)
    call = asyncio.create_task(caller.infer("model", value(1)))
    await held(stage, 1)
    await caller.close()
    with pytest.raises((Cancelled, asyncio.CancelledError)):
        await call


async def test_automatic_streams_are_opened_under_load_only(stage: Stage, connect: Connect) -> None:
    caller = connect(stage.address, multiplex="auto")
    for _ in range(3):
        call = asyncio.create_task(caller.infer("model", value(0)))
        await held(stage, 0)
        stage.complete(0)
        await call
    assert caller.client.open_streams == 0
    calls = [asyncio.create_task(caller.infer("model", value(n))) for n in range(UNDER_LOAD)]
    await until(lambda: caller.client.open_streams == 1)
    for n in range(UNDER_LOAD):
        await held(stage, n)
        stage.complete(n)
    await asyncio.gather(*calls)


GOOD = {"a": np.float32([[1, 2]]), "tags": np.array([[b"t"]], dtype=object)}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shape": ({**GOOD, "a": np.zeros((1, 3), np.float32)}, {}),
    "datatype": ({**GOOD, "a": np.zeros((1, 2), np.int64)}, {}),
    "unknown input": ({**GOOD, "c": np.zeros((1, 2), np.float32)}, {}),
    "missing input": ({"a": GOOD["a"]}, {}),
    "unknown output": (GOOD, {"outputs": ["nothing"]}),
    "too many rows": ({n: np.repeat(a, 9, 0) for n, a in GOOD.items()}, {}),
    "parameter": (GOOD, {"parameters": {"timeout": -1}}),
    "reserved parameter": (GOOD, {"parameters": {"triton_x": 1}}),
    "model raises": ({**GOOD, "a": np.full((1, 2), -1e7, np.float32)}, {}),
}


@pytest.mark.parametrize("case", BAD)
async def test_errors_are_those_of_unary_calls(served: Served, connect: Connect, case: str) -> None:
    inputs, options = BAD[case]
    unary, multiplexed = connect(served.address, multiplex=False), connect(served.address)
    await multiplexed.streaming("sums", GOOD)
    errors = []
    for caller in (unary, multiplexed):
        with pytest.raises(ServerError) as raised:
            await caller.infer("sums", inputs, request_id="mine", **options)
        error = raised.value
        errors.append((type(error), error.args))
    assert errors[0] == errors[1]
    assert multiplexed.client.open_streams == 1


async def test_results_are_those_of_unary_calls(served: Served, connect: Connect) -> None:
    unary, multiplexed = connect(served.address, multiplex=False), connect(served.address)
    await multiplexed.streaming("sums", GOOD)
    options = {
        "version": "3",
        "outputs": ["again", "sum"],
        "request_id": "mine",
        "parameters": {"own": 5},
        "priority": 1,
    }
    one, two = [await c.infer("sums", GOOD, **options) for c in (unary, multiplexed)]
    assert (one.model_name, one.model_version, one.request_id, one.parameters) == (
        *(two.model_name, two.model_version, two.request_id),
        two.parameters,
    )
    assert list(one) == list(two) == ["again", "sum"]
    for name in one:
        assert one[name].tolist() == two[name].tolist()
    timed = await multiplexed.infer("sums", GOOD, parameters={"headrace_timing": True})
    assert set(timed.parameters) == {
        *("headrace_batch_rows", "headrace_queue_us", "headrace_compute_us")
    }
    assert timed.timing is not None
    assert timed.timing.batch_rows == 1
    assert timed.timing.compute_s > 0
    assert one.timing is None


# -- other servers --------------------------------------------------------------------------


class Triton(rpc.GRPCInferenceServiceServicer):
    """Answers as Triton does: streams in the order of the requests, errors as a text with the id.

    Gives inputs back. The model `nobody` is not there, `pieces` answers in two.
    """

    def __init__(self) -> None:
        self.alone = self.streamed = self.streams = 0
        self.seen: set[str] = set()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> Any:
        self.alone += 1
        if request.model_name == "nobody":
            await context.abort(grpc.StatusCode.NOT_FOUND, NOT_FOUND)
        if request.model_name == "pieces" and self.streamed:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "decoupled")
        return self.echo(request)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        self.streams += 1
        async for request in requests:
            self.streamed += bool(request.model_name)
            self.seen |= set(request.parameters)
            for answer in self.answers(request):
                yield answer

    def answers(self, request: pb.ModelInferRequest) -> Iterator[pb.ModelStreamInferResponse]:
        if request.model_name in ("", "nobody"):
            yield self.error(request, NOT_FOUND)
            return
        if request.model_name == "picky":
            yield self.error(request, "unexpected shape for input 'x' for model 'picky'")
            return
        for final in (False, True) if request.model_name == "pieces" else (True,):
            message = pb.ModelStreamInferResponse(infer_response=self.echo(request))
            message.infer_response.parameters["triton_final_response"].bool_param = final
            yield message

    def error(self, request: pb.ModelInferRequest, text: str) -> pb.ModelStreamInferResponse:
        message = pb.ModelStreamInferResponse(error_message=text)
        message.infer_response.id = request.id
        return message

    def echo(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version="1", id=request.id
        )
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            response.outputs.add(name="y", datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(raw)
        return response


NOT_FOUND = "Request for unknown model: '' is not found"


class Nameless(Triton):
    """Errors do not say whose they are."""

    def error(self, request: pb.ModelInferRequest, text: str) -> pb.ModelStreamInferResponse:
        return pb.ModelStreamInferResponse(error_message=text)


class Strict(Triton):
    """An error ends the stream with a status."""

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        self.streams += 1
        await context.abort(grpc.StatusCode.NOT_FOUND, NOT_FOUND)
        yield


class WithoutStreams(Triton):
    """Has no streams at all."""

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        self.streams += 1
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no streams here")
        yield


class Silent(Triton):
    """Says nothing on streams, as behind a proxy that waits for their end."""

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        self.streams += 1
        await asyncio.Event().wait()
        yield


class Forgetful(Triton):
    """Answers streamed requests under ids of its own."""

    def answers(self, request: pb.ModelInferRequest) -> Iterator[pb.ModelStreamInferResponse]:
        for answer in super().answers(request):
            if request.model_name:
                answer.infer_response.id = "another"
            yield answer


class Breaking(Triton):
    """Ends each stream at the third request."""

    async def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        self.streams += 1
        taken = 0
        async for request in requests:
            taken += 1
            if taken > 3:
                await context.abort(grpc.StatusCode.INTERNAL, "a proxy lost patience")
            for answer in self.answers(request):
                yield answer


@asynccontextmanager
async def serving(service: Triton) -> AsyncIterator[str]:
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def echoes(caller: Caller, count: int, model: str = "echo") -> None:
    """Make so many calls at once, and check each by its content."""

    async def call(n: int) -> None:
        x = np.array([[n, -n]])
        result = await caller.infer(model, {"x": x}, request_id=f"r{n}")
        assert result["y"].tolist() == x.tolist()
        assert (result.request_id, dict(result.parameters)) == (f"r{n}", {})

    await asyncio.gather(*(call(n) for n in range(count)))


async def test_triton_is_multiplexed_too_without_words_it_does_not_know(connect: Connect) -> None:
    service = Triton()
    async with serving(service) as address:
        caller = connect(address)
        await caller.streaming("echo", {"x": np.zeros(1)})
        alone = service.alone
        await echoes(caller, 200)
        assert (service.alone, service.streams) == (alone, 1)
        assert service.streamed >= 200
        assert service.seen == set()


async def test_error_of_triton_on_a_stream_has_the_class_of_a_unary_one(connect: Connect) -> None:
    service = Triton()
    async with serving(service) as address:
        caller = connect(address)
        await caller.infer("picky", {"x": np.zeros(1)})  # alone it is not
        await caller.streaming("echo", {"x": np.zeros(1)})
        with pytest.raises(NotFound, match="is not found"):
            await caller.infer("nobody", {"x": np.zeros(1)})
        with pytest.raises(InvalidRequest, match="unexpected shape") as raised:
            await caller.infer("picky", {"x": np.zeros(1)}, request_id="mine")
        assert (raised.value.reason, raised.value.request_id) == (None, "mine")
        await echoes(caller, 5)
        assert caller.client.open_streams == 1


@pytest.mark.parametrize("kind", [Nameless, Strict, WithoutStreams, Silent])
async def test_server_that_streams_in_another_way_gets_unary_calls(
    connect: Connect, kind: type[Triton]
) -> None:
    service = kind()
    async with serving(service) as address:
        caller = connect(address)
        await echoes(caller, 20)
        await echoes(caller, 20)
        await until(lambda: service.streams == 1)
        await echoes(caller, 20)
        assert (service.alone, caller.client.open_streams) == (60, 0)


@pytest.mark.parametrize("kind", [Forgetful, Breaking])
async def test_calls_on_a_stream_that_breaks_are_tried_again(
    connect: Connect, kind: type[Triton]
) -> None:
    service = kind()
    async with serving(service) as address:
        caller = connect(address, retry=QUICK)
        await caller.streaming("echo", {"x": np.zeros(1)})
        await echoes(caller, 20)
        assert service.streams == 1


async def test_model_that_answers_in_pieces_is_called_alone(connect: Connect) -> None:
    service = Triton()
    async with serving(service) as address:
        caller = connect(address)
        await caller.streaming("pieces", {"x": np.zeros(1)})  # it does not yet
        for _ in range(2):
            with pytest.raises(Unimplemented, match="decoupled"):
                await caller.infer("pieces", {"x": np.zeros(1)})
        assert service.streamed == 1
        await caller.infer("echo", {"x": np.zeros(1)})
        await echoes(caller, 5)
        assert (service.streamed, caller.client.open_streams) == (6, 1)


async def test_large_request_is_called_alone(connect: Connect) -> None:
    service = Triton()
    async with serving(service) as address:
        caller = connect(address)
        await caller.streaming("echo", {"x": np.zeros(1)})
        alone = service.alone
        x = np.arange(MAX_MESSAGE_BYTES, dtype=np.uint8)
        assert (await caller.infer("echo", {"x": x}))["y"].tolist() == x.tolist()
        assert (service.alone, service.streamed) == (alone + 1, 0)


async def test_server_that_answers_in_order_is_not_multiplexed_by_itself(connect: Connect) -> None:
    service = Triton()
    async with serving(service) as address:
        caller = connect(address, multiplex="auto")
        for _ in range(3):
            await echoes(caller, 4 * UNDER_LOAD)
        await until(lambda: service.streams == 1)
        await echoes(caller, 4 * UNDER_LOAD)
        assert (service.streamed, caller.client.open_streams) == (0, 0)

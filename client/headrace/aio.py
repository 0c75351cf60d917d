"""`AsyncClient`: the SDK for programs built on asyncio. `headrace.client` holds its twin.

Only the waiting is here: requests and answers are made in `messages`, the decision to try again
in `retry`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from types import TracebackType
from typing import Self, TypeVar

import grpc

from headrace import messages
from headrace.access import Tls, access_of, metadata_of
from headrace.aio_streams import AsyncStreams
from headrace.answers import (
    IndexEntry,
    InferResult,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
)
from headrace.attempts import Attempts, Timeout
from headrace.channels import ChannelOptions
from headrace.errors import (
    InvalidRequest,
    InvalidResponse,
    NotFound,
    ServerError,
    client_closed,
    server_error,
)
from headrace.explanations import ModelExplanation
from headrace.large_messages import INFER_METHOD, parse_response, serialized
from headrace.messages import ConfigOverride, Inputs, Into, Parameters
from headrace.multiplexing import Multiplex
from headrace.protocol import explanation_pb2
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol.explanation_pb2_grpc import ExplanationServiceStub
from headrace.protocol.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from headrace.protocol.model_config_pb2 import ModelConfig
from headrace.retry import DEFAULT_RETRY, RetryPolicy
from headrace.shared_memory import SharedMemory

__all__ = ["AsyncClient"]

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """Calls a server from coroutines; any number of calls may be under way at once.

    Create it where an event loop runs, and use it there only. The connection is made by the first
    call and made again when it breaks. Cancelling the task that waits for a call cancels the call
    on the server too.

    Every method takes a `timeout` in seconds, which travels as the gRPC deadline and bounds all
    attempts together: `...` takes the client's default, None sets no limit. Every method raises a
    subclass of `headrace.errors.ServerError` if the call fails.

    Args:
        target: address of the server's gRPC port, in gRPC's syntax (`host:port`, `unix:path`).
        timeout: default for each call, in seconds; None sets no limit.
        retry: when and how often a failed call is tried again.
        metadata: sent with every call, such as `{"authorization": "Bearer ..."}`; keys are lower
            case.
        multiplex: True sends calls of `infer` over a few streams that they share, which costs both
            sides less per call; `auto` does so under load, where the server answers in any order.
            See the README for what that means behind a load balancer.
        tls: True secures the connection, and checks the server against the authorities that gRPC
            brings along; `headrace.Tls` names others, and the client's own certificate.
        token: the server's `headrace token`, sent with every call. Without TLS whoever is on the
            way can read it.
        credentials: of the connection, where `tls` does not say enough.
        options: gRPC channel options, on top of the SDK's own.

    Raises:
        RuntimeError: no event loop runs.
        InvalidInput: `tls` names files that cannot be used, `token` is none, or `target` or
            `metadata` cannot be sent.

    Example:
        >>> async with AsyncClient("127.0.0.1:8001") as client:
        ...     result = await client.infer("digits", {"image": image})
        ...     print(result["probabilities"].argmax(axis=1))
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8001",
        *,
        timeout: float | None = 60.0,
        retry: RetryPolicy = DEFAULT_RETRY,
        metadata: Mapping[str, str | bytes] | None = None,
        multiplex: Multiplex = False,
        tls: bool | Tls = False,
        token: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        options: ChannelOptions = (),
    ) -> None:
        asyncio.get_running_loop()  # gRPC would bind to a loop that nobody runs
        access = access_of(tls, token, credentials)
        self._call_metadata = (*access.metadata, *metadata_of(metadata or {}))
        self._channel = access.aio_channel(target, options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._explanation_stub = ExplanationServiceStub(self._channel)
        unary = self._channel.unary_unary(
            INFER_METHOD, request_serializer=serialized, response_deserializer=parse_response
        )
        self._streams = (
            AsyncStreams(self._channel, unary, self._call_metadata, multiplex)
            if multiplex
            else None
        )
        self._model_infer = self._streams or unary
        self._closed = asyncio.Event()
        self._timeout_s = timeout
        self._retry = retry
        self._random = Random()
        self._signatures: dict[tuple[str, str], ModelMetadata] = {}
        self._memories: dict[str, SharedMemory] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way are cancelled. Those that wait for their
        next attempt, and every later one, end as `Cancelled`."""
        self._closed.set()
        if self._streams is not None:
            await self._streams.close()
        await self._channel.close()

    @property
    def open_streams(self) -> int:
        """Streams that calls of `infer` share at this moment; 0 unless `multiplex` is set."""
        return 0 if self._streams is None else self._streams.open

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        parameters: Parameters | None = None,
        request_id: str = "",
        priority: int | None = None,
        into: Into | None = None,
        timeout: Timeout = ...,
    ) -> InferResult:
        """Run a model on one request.

        Arrays are sent with the dtype they have: numpy's, those of `ml_dtypes`, and whatever
        else `numpy.asarray` understands. Python numbers, text, bytes and nested lists of them take
        the datatype that the model declares; its metadata is fetched once for that and kept until
        the server refuses a request.

        Args:
            model: the model's name.
            inputs: value of each input, by name; the batch dimension comes first.
            version: version to run; empty leaves the choice to the server.
            outputs: names of the outputs wanted, in the order wanted; None means all.
            parameters: parameters of the request, for the server or the model.
            request_id: a name of the caller's own; the answer and any error carry it.
            priority: 1 is the most urgent, 0 the model's default.
            into: arrays of `shared_memory` that outputs are written into, by name; the answer holds
                views of them. Outputs that are named neither here nor in `outputs` do not come.
            timeout: seconds for the whole call.

        Raises:
            InvalidInput: the arguments make no request; nothing was sent.
            ServerError: the call failed.
            InvalidResponse: the answer contradicts itself.

        Example:
            >>> await client.infer("digits", {"image": np.zeros((1, 64), np.float32)})
            >>> await client.infer("sentences", {"text": [["one"], ["two"]]})
        """
        attempts = self._attempts(timeout, request_id)
        signature = (
            await self._signature(model, version, attempts)
            if messages.needs_metadata(inputs)
            else None
        )
        request = messages.infer_request(
            model,
            messages.arrays_to_send(model, inputs, signature),
            version=version,
            outputs=outputs,
            parameters=parameters,
            request_id=request_id,
            priority=priority,
            into=into,
            memories=[*self._memories.values()],
        )
        try:
            response = await self._call(self._model_infer, request, attempts, request_id)
        except (InvalidRequest, NotFound):
            self._signatures.pop((model, version), None)
            raise
        return messages.infer_result(response, into)

    @asynccontextmanager
    async def shared_memory(
        self, nbytes: int, *, timeout: Timeout = ...
    ) -> AsyncIterator[SharedMemory]:
        """Memory that this machine's server shares until the `with` block ends.

        Arrays made by its `empty` are not sent when they are inputs of `infer`, nor received when
        `into` names them: the server reads and writes them where they are. So they must not be
        changed, or used for another call, before their call has ended. After one that was
        cancelled or timed out the server may still do either for a moment: leave its arrays alone,
        and take others.

        A server that is started again knows nothing of memory from before (`NotFound`): take some
        anew then.

        Args:
            nbytes: its size; arrays begin at multiples of 64.
            timeout: seconds for registering it with the server, and for giving it back.

        Raises:
            InvalidInput: this machine has not so much.
            Unimplemented: the server shares no memory; Headrace does with `--allow-client-shm`.
            InvalidRequest: it cannot open the memory: it runs on another machine, or as another
                user.

        Example:
            >>> async with client.shared_memory(1 << 20) as memory:
            ...     image = memory.empty((1, 3, 224, 224), np.float32)
            ...     image[:] = load()
            ...     result = await client.infer("resnet", {"image": image})
        """
        memory = SharedMemory(nbytes)
        try:
            register = self._stub.SystemSharedMemoryRegister
            await self._call(register, memory.registration(), self._attempts(timeout))
            memory.unlink()
            self._memories[memory.name] = memory
            try:
                yield memory
            finally:
                del self._memories[memory.name]
                forget = pb.SystemSharedMemoryUnregisterRequest(name=memory.name)
                with suppress(ServerError):  # a server that is gone has forgotten it
                    unregister = self._stub.SystemSharedMemoryUnregister
                    await self._call(unregister, forget, self._attempts(timeout))
        finally:
            memory.unlink()
            memory.close()

    async def server_live(self, *, timeout: Timeout = ...) -> bool:
        """Whether the server's process answers. Raises `Unavailable` if nothing can be reached."""
        request = pb.ServerLiveRequest()
        return (await self._call(self._stub.ServerLive, request, self._attempts(timeout))).live

    async def server_ready(self, *, timeout: Timeout = ...) -> bool:
        """Whether the server takes inference requests."""
        request = pb.ServerReadyRequest()
        return (await self._call(self._stub.ServerReady, request, self._attempts(timeout))).ready

    async def model_ready(self, model: str, version: str = "", *, timeout: Timeout = ...) -> bool:
        """Whether a model takes inference requests."""
        request = messages.model_request(pb.ModelReadyRequest, model, version)
        return (await self._call(self._stub.ModelReady, request, self._attempts(timeout))).ready

    async def server_metadata(self, *, timeout: Timeout = ...) -> ServerMetadata:
        """Name, release and extensions of the server."""
        request = pb.ServerMetadataRequest()
        response = await self._call(self._stub.ServerMetadata, request, self._attempts(timeout))
        return messages.server_metadata(response)

    async def model_metadata(
        self, model: str, version: str = "", *, timeout: Timeout = ...
    ) -> ModelMetadata:
        """Names, datatypes and shapes that a model takes and gives. Always asks the server."""
        return await self._model_metadata(model, version, self._attempts(timeout))

    async def model_config(
        self, model: str, version: str = "", *, timeout: Timeout = ...
    ) -> ModelConfig:
        """The configuration that a model runs with, as the protocol's own message."""
        request = messages.model_request(pb.ModelConfigRequest, model, version)
        return (await self._call(self._stub.ModelConfig, request, self._attempts(timeout))).config

    async def statistics(
        self, model: str = "", version: str = "", *, timeout: Timeout = ...
    ) -> list[ModelStatistics]:
        """Counts and durations for each version of a model; of every model if none is named."""
        request = messages.model_request(pb.ModelStatisticsRequest, model, version)
        response = await self._call(self._stub.ModelStatistics, request, self._attempts(timeout))
        return messages.model_statistics(response)

    async def explain(
        self, model: str, version: str = "", *, timeout: Timeout = ...
    ) -> ModelExplanation:
        """What batches of a model cost, which sizes are worth it, and how the last minute's went.

        Only a Headrace server answers that; others end the call as `Unimplemented`.
        """
        request = messages.model_request(explanation_pb2.ExplainModelRequest, model, version)
        method = self._explanation_stub.ExplainModel
        response = await self._call(method, request, self._attempts(timeout))
        return messages.model_explanation(response)

    async def index(self, *, ready_only: bool = False, timeout: Timeout = ...) -> list[IndexEntry]:
        """What the model repository holds, and in which state."""
        request = pb.RepositoryIndexRequest(ready=ready_only)
        response = await self._call(self._stub.RepositoryIndex, request, self._attempts(timeout))
        return messages.index_entries(response)

    async def load_model(
        self, model: str, *, config: ConfigOverride | None = None, timeout: Timeout = ...
    ) -> None:
        """Load a model, or load it again; returns once it serves, so give it time.

        The server must allow it (`headrace serve --model-control-mode explicit`). A model that is
        served goes on until the new load takes its place, and stays if that fails.

        Args:
            model: the model's name.
            config: takes the place of its config.pbtxt for this load: JSON text, or the mapping
                that becomes it, such as `{"max_batch_size": 8}`.
            timeout: seconds for the whole call; when they are over nothing has changed.

        Raises:
            InvalidRequest: it cannot be loaded, and the text says why.
            NotFound: the repository does not hold it.
        """
        request = messages.load_request(model, config)
        await self._call(self._stub.RepositoryModelLoad, request, self._attempts(timeout))

    async def unload_model(self, model: str, *, timeout: Timeout = ...) -> None:
        """Have a model refuse new requests; once those it has are answered, it is gone.

        The server must allow it (`headrace serve --model-control-mode explicit`).
        """
        request = messages.unload_request(model)
        await self._call(self._stub.RepositoryModelUnload, request, self._attempts(timeout))

    async def _signature(self, model: str, version: str, attempts: Attempts) -> ModelMetadata:
        known = self._signatures.get((model, version))
        if known is None:
            known = await self._model_metadata(model, version, attempts)
            self._signatures[model, version] = known
        return known

    async def _model_metadata(self, model: str, version: str, attempts: Attempts) -> ModelMetadata:
        request = messages.model_request(pb.ModelMetadataRequest, model, version)
        response = await self._call(self._stub.ModelMetadata, request, attempts)
        return messages.model_metadata(response)

    def _attempts(self, timeout: Timeout, request_id: str = "") -> Attempts:
        timeout_s = self._timeout_s if timeout is ... else timeout
        return Attempts(self._retry, timeout_s, self._random, request_id=request_id)

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Request,
        attempts: Attempts,
        request_id: str = "",
    ) -> Response:
        while not self._closed.is_set():
            cause: Exception | None = None
            try:
                response = await method(
                    request, timeout=attempts.remaining_s(), metadata=self._call_metadata
                )
                if response is None:  # what grpc.aio makes of a message that it cannot read
                    raise InvalidResponse("the answer is no message of its method")
                return response
            except ServerError as told:  # by a stream
                error = told
            except grpc.aio.AioRpcError as failure:
                error, cause = server_error(failure, request_id), failure
            except grpc.aio.UsageError:  # what gRPC raises once its channel is closed
                if not self._closed.is_set():
                    raise
                break
            delay_s = attempts.delay_after(error)
            if delay_s is None:
                raise error from cause
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), delay_s)
        raise client_closed(request_id)

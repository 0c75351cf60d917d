"""The gRPC services: each method reads a message, asks the engine and writes a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from headrace.multiplexing import EXTENSION
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine
from headrace_server.engine.statistics import Statistics
from headrace_server.transport.deadlines import remaining_s
from headrace_server.transport.failing import Context, answering, fail, refuse
from headrace_server.transport.gate import Gate
from headrace_server.transport.infer_stream import DEFAULT_LIMITS, InferStream, StreamLimits
from headrace_server.transport.reading import RequestReader, wants_timing
from headrace_server.transport.unread import COUNTED_FROM, UnreadAnswers
from headrace_server.transport.writing import ResponseWriter, add_timing, statistics_message

EXTENSIONS = ("schedule_policy", "model_configuration", "parameters", "statistics", EXTENSION)
"""Of the protocol's extensions those that work, in the protocol's order; then our own."""


class InferenceService(rpc.GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`: the Open Inference Protocol and Triton's extensions."""

    def __init__(
        self,
        engine: Engine,
        statistics: Statistics,
        config_of: Callable[[Deployment], ModelConfig],
        version: str,
        stream_limits: StreamLimits = DEFAULT_LIMITS,
        gate: Gate | None = None,
        unread: UnreadAnswers | None = None,
    ) -> None:
        self._gate = gate
        self._unread = unread or UnreadAnswers()
        self._engine = engine
        self._statistics = statistics
        self._config_of = config_of
        self._version = version
        self._stream_limits = stream_limits
        self._codecs: WeakKeyDictionary[Deployment, tuple[RequestReader, ResponseWriter]] = (
            WeakKeyDictionary()
        )
        self._streams: WeakSet[InferStream] = WeakSet()

    # -- inference --------------------------------------------------------------------------

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> Any:
        """Run one request, in a batch with others."""
        # Written out rather than wrapped: one coroutine less on the path of every request.
        try:
            tenant = None if self._gate is None else self._gate.admit(request)
            if self._unread.scarce:
                self._unread.check(context.peer())
            deployment = self._engine.find(request.model_name, request.model_version)
            codec = self._codecs.get(deployment)
            if codec is None:
                codec = self._codec(deployment)
            reader, writer = codec
            positions = reader.outputs(request)
            call = reader.read(request, remaining_s(context.time_remaining()))
            if tenant is not None:
                call.tenant, call.weight = tenant.name, tenant.weight
            answer = await deployment.infer(call)
            nbytes = sum(len(answer.outputs[position].data) for position in positions)
            if nbytes >= COUNTED_FROM and not self._unread.hold_for_call(context.peer(), nbytes):
                del answer  # the refusal may have to wait to be read, too
                raise self._unread.refusal(context.peer())
            response = writer.write(answer, request.id, positions)
            if request.parameters and wants_timing(request):
                add_timing(response, answer)
            return response
        except ServingError as error:
            self._count_invalid(request.model_name, request.model_version, error)
            await refuse(context, error)
        except Exception as error:
            await fail(context, error)
        raise AssertionError("unreachable")

    # grpc.aio also takes a coroutine that reads and writes by itself; the stub's types do not.
    async def ModelStreamInfer(  # type: ignore[override]
        self, requests: object, context: Context
    ) -> None:
        """Run many requests, each on its own, and answer them over the same stream."""
        stream = InferStream(
            self._engine,
            self._codec_of,
            self._count_invalid,
            self._stream_limits,
            context,
            self._unread,
            self._gate,
        )
        self._streams.add(stream)
        await stream.run()

    def end_streams(self) -> None:
        """Let every stream finish what it was given, and end."""
        for stream in [*self._streams]:
            stream.end()

    # -- what there is ----------------------------------------------------------------------

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        """Whether the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """Whether everything that should serve can."""
        return pb.ServerReadyResponse(ready=self._engine.ready())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """Whether a request to this model would find a live worker; false for unknown models."""
        try:
            ready = self._engine.find(request.name, request.version).ready
        except ServingError:
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Name, version and the extensions that work."""
        return pb.ServerMetadataResponse(
            name="headrace", version=self._version, extensions=EXTENSIONS
        )

    @answering
    async def ModelMetadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """The signature of a model."""
        self._check_model(request.name)
        deployment = self._engine.find(request.name, request.version)
        spec = deployment.spec
        batch = [-1] if spec.max_batch_size else []
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=spec.name,
            versions=[
                str(d.version)
                for d in self._engine.deployments()
                if d.name == spec.name and d.state is DeploymentState.READY
            ],
            platform=spec.platform,
            inputs=[
                tensor(name=t.name, datatype=t.datatype, shape=[*batch, *t.shape])
                for t in spec.inputs
            ],
            outputs=[
                tensor(name=t.name, datatype=t.datatype, shape=[*batch, *t.shape])
                for t in spec.outputs
            ],
        )

    @answering
    async def ModelConfig(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """The model's configuration, complete, whether or not there was a file."""
        self._check_model(request.name)
        deployment = self._engine.find(request.name, request.version)
        return pb.ModelConfigResponse(config=self._config_of(deployment))

    @answering
    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        """Counts and durations of one model, one version, or all."""
        if request.name:
            self._check_model(request.name)
            self._engine.look_up(request.name, request.version)
        chosen = [
            deployment
            for deployment in self._engine.deployments()
            if deployment.loaded
            and self._may_see(deployment.name)
            and request.name in ("", deployment.name)
            and request.version in ("", str(deployment.version))
        ]
        return pb.ModelStatisticsResponse(
            model_stats=[statistics_message(d, self._statistics.of(d)) for d in chosen]
        )

    # -- repository -------------------------------------------------------------------------

    @answering
    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        """Every model of the repository with its state, and the reason where it is not ready."""
        index = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                index(name=row.model, version=row.version, state=row.state, reason=row.reason)
                for row in self._engine.index()
                if self._may_see(row.model)
                and (not request.ready or row.state == DeploymentState.READY.value)
            ]
        )

    @answering
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        """Refused: what the repository held at the start is served."""
        raise ServingError(Reason.MODEL_CONTROL_REFUSED)

    @answering
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Refused: what the repository held at the start is served."""
        raise ServingError(Reason.MODEL_CONTROL_REFUSED)

    # -- inside -----------------------------------------------------------------------------

    def _check_model(self, model: str) -> None:
        if self._gate is not None:
            self._gate.check_model(model)

    def _may_see(self, model: str) -> bool:
        return self._gate is None or self._gate.allows(model)

    def _codec_of(self, deployment: Deployment) -> tuple[RequestReader, ResponseWriter]:
        return self._codecs.get(deployment) or self._codec(deployment)

    def _codec(self, deployment: Deployment) -> tuple[RequestReader, ResponseWriter]:
        spec = deployment.spec
        codec = self._codecs[deployment] = (RequestReader(spec), ResponseWriter(spec))
        return codec

    def _count_invalid(self, model: str, version: str, error: ServingError) -> None:
        """Count what was refused before it became a request, without letting callers make up
        label values. What the scheduler refused was counted when it did."""
        if not error.counted:
            known = self._engine.knows(model)
            self._engine.observer.call_invalid(model if known else "", "", error.reason)

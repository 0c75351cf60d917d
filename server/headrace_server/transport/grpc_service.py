"""The gRPC services: each method reads a message, asks the engine and writes a message."""

from __future__ import annotations

from collections.abc import Callable

from headrace.multiplexing import EXTENSION
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine
from headrace_server.engine.model_control import ModelControl
from headrace_server.engine.statistics import Statistics
from headrace_server.models.config_text import config_from_json
from headrace_server.models.errors import ConfigError
from headrace_server.transport.failing import Context, answering
from headrace_server.transport.gate import Gate
from headrace_server.transport.infer_stream import DEFAULT_LIMITS, StreamLimits
from headrace_server.transport.inferring import InferringService
from headrace_server.transport.regions import FEATURE, Parameters, RegionTable
from headrace_server.transport.unread import UnreadAnswers
from headrace_server.transport.writing import statistics_message
from headrace_server.workers.regions import Span

EXTENSIONS = (
    *("model_repository", "model_repository(unload_dependents)", "schedule_policy"),
    *("model_configuration", "parameters", "statistics", EXTENSION),
)
"""Of the protocol's extensions those that always work, in the protocol's order; then our own."""

SHARED_MEMORY_EXTENSION = "system_shared_memory"


class InferenceService(InferringService):
    """`inference.GRPCInferenceService`: the Open Inference Protocol and Triton's extensions."""

    def __init__(
        self,
        engine: Engine,
        statistics: Statistics,
        config_of: Callable[[Deployment], ModelConfig],
        version: str,
        *,
        stream_limits: StreamLimits = DEFAULT_LIMITS,
        gate: Gate | None = None,
        control: ModelControl | None = None,
        regions: RegionTable | None = None,
        max_span_bytes: int = 0,
        unread: UnreadAnswers | None = None,
    ) -> None:
        super().__init__(engine, self._find_span, max_span_bytes, stream_limits, gate, unread)
        self._control = control
        self._regions = regions
        self._engine = engine
        self._statistics = statistics
        self._config_of = config_of
        self._version = version
        self._extensions = list(EXTENSIONS)
        if regions is not None:
            self._extensions.insert(EXTENSIONS.index("parameters"), SHARED_MEMORY_EXTENSION)

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
        return pb.ModelReadyResponse(ready=self._engine.model_ready(request.name, request.version))

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Name, version and the extensions that work."""
        return pb.ServerMetadataResponse(
            name="headrace", version=self._version, extensions=self._extensions
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
        if request.repository_name:
            raise ServingError(Reason.UNSUPPORTED, feature="'repository_name'")
        index = pb.RepositoryIndexResponse.ModelIndex
        rows = self._engine.index() if self._control is None else await self._control.index()
        return pb.RepositoryIndexResponse(
            models=[
                index(name=row.model, version=row.version, state=row.state, reason=row.reason)
                for row in rows
                if self._may_see(row.model)
                and (not request.ready or row.state == DeploymentState.READY.value)
            ]
        )

    @answering
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model, or load it again beside the one that serves."""
        control, config = self._controlled(request), None
        for key, parameter in request.parameters.items():
            if key.startswith("file:"):
                # Whoever may send files of models may run code here.
                raise ServingError(Reason.UNSUPPORTED, feature=f"parameter '{key}'")
            if key != "config" or parameter.WhichOneof("parameter_choice") != "string_param":
                raise _wrong_parameter(key, request.model_name, "expected 'config' with JSON text")
            try:
                config = config_from_json(parameter.string_param)
            except ConfigError as error:
                raise _wrong_parameter(key, request.model_name, str(error)) from None
        await control.load(request.model_name, config)
        return pb.RepositoryModelLoadResponse()

    @answering
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model; that it has begun is answered at once."""
        control = self._controlled(request)
        for key, parameter in request.parameters.items():
            # No model depends on another one here, so both of its values mean the same.
            if (
                key != "unload_dependents"
                or parameter.WhichOneof("parameter_choice") != "bool_param"
            ):
                problem = "expected 'unload_dependents', true or false"
                raise _wrong_parameter(key, request.model_name, problem)
        await control.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _controlled(
        self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest
    ) -> ModelControl:
        if self._control is None or not self._control.explicit:
            raise ServingError(Reason.MODEL_CONTROL_REFUSED)
        if request.repository_name:
            raise ServingError(Reason.UNSUPPORTED, feature="'repository_name'")
        return self._control

    # -- memory shared with clients ---------------------------------------------------------

    @answering
    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        """The caller's regions."""
        regions, owner = self._shared()
        return regions.status(owner, request.name)

    @answering
    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Open a region for the caller's requests."""
        regions, owner = self._shared()
        regions.register(owner, request)
        return pb.SystemSharedMemoryRegisterResponse()

    @answering
    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget one region of the caller's, or all."""
        regions, owner = self._shared()
        regions.unregister(owner, request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    @answering
    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Refused: only system memory is shared."""
        raise _no_cuda_memory()

    @answering
    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Refused: only system memory is shared."""
        raise _no_cuda_memory()

    @answering
    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Refused: only system memory is shared."""
        raise _no_cuda_memory()

    # -- inside -----------------------------------------------------------------------------

    def _check_model(self, model: str) -> None:
        if self._gate is not None:
            self._gate.check_model(model)

    def _shared(self) -> tuple[RegionTable, str]:
        """The regions, and in whose name the caller uses them. Raises `ServingError`."""
        if self._regions is None:
            raise ServingError(Reason.UNSUPPORTED, feature=FEATURE)
        return self._regions, "" if self._gate is None else self._gate.sharer()

    def _find_span(self, parameters: Parameters) -> Span:
        regions, owner = self._shared()
        return regions.span(owner, parameters)

    def _may_see(self, model: str) -> bool:
        return self._gate is None or self._gate.allows(model)


def _wrong_parameter(key: str, model: str, problem: str) -> ServingError:
    return ServingError(Reason.INVALID_PARAMETER, parameter=key, model=model, problem=problem)


def _no_cuda_memory() -> ServingError:
    return ServingError(Reason.UNSUPPORTED, feature="CUDA shared memory")

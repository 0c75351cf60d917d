"""The gRPC server: services, reflection, and the port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from headrace.large_messages import parse_request, serialized
from headrace.protocol import (
    explanation_pb2,
    explanation_pb2_grpc,
    grpc_service_pb2,
    grpc_service_pb2_grpc,
    model_config_pb2,
)
from headrace_server.rpc.server import DEFAULT_LIMITS, RpcLimits, RpcServer
from headrace_server.transport.certificates import Certificates
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.gate import Gate, GateKeeper
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.transport.registration import Registration


class PortUnavailableError(Exception):
    """The address cannot be listened on; the text is one line for the operator."""


CODECS = {
    "ModelInfer": (parse_request, serialized),
    "ModelStreamInfer": (parse_request, serialized),
}
"""How messages with large contents are read and written, in the place of the generated way."""


class GrpcServer:
    """Serves the inference, explanation, health and reflection services on one port.

    Args:
        tls: secures the port; None means plain text.
        gate: who may do what; None where everybody may everything.
    """

    def __init__(
        self,
        inference: InferenceService,
        explanation: ExplanationService,
        health: HealthReporter,
        *,
        limits: RpcLimits = DEFAULT_LIMITS,
        tls: Certificates | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._inference = inference
        registration = Registration(inference.count_unreadable, CODECS)
        # Generated code asks for a server, and uses of it what a `Registration` has.
        methods: Any = registration
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, methods)
        explanation_pb2_grpc.add_ExplanationServiceServicer_to_server(explanation, methods)
        health_pb2_grpc.add_HealthServicer_to_server(health, methods)
        described = (
            grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
            explanation_pb2.DESCRIPTOR.services_by_name["ExplanationService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        servicer = reflection.aio.ReflectionServicer(described, pool=_described())
        add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add_reflection(servicer, methods)
        self._server = RpcServer(
            registration.methods,
            limits,
            guard=None if gate is None else GateKeeper(gate),
            tls=None if tls is None else tls.http2_context,
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port.

        Raises:
            PortUnavailableError: the address is taken or is none of this machine's.
        """
        try:
            return await self._server.start(host, port)
        except OSError:
            raise unavailable(f"{host}:{port}") from None

    async def start_privately(self, path: Path) -> None:
        """Listen on a Unix socket in the place of a port, in plain text: who may connect is up to
        the directory that it lies in. Raises `PortUnavailableError`."""
        try:
            await self._server.start_privately(path)
        except OSError:
            raise unavailable(str(path)) from None

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give the running ones `grace_s` seconds, and close."""
        self._inference.end_streams()
        await self._server.stop(grace_s)


def unavailable(address: str) -> PortUnavailableError:
    """What the operator is told about an address."""
    return PortUnavailableError(
        f"cannot listen for gRPC on {address}: the port is in use or the address is not this "
        "machine's; choose another with --grpc-port or --host"
    )


def _described() -> DescriptorPool:
    """A pool with everything that reflection may be asked about: our stubs live in a pool of
    their own, the services of grpc in the default one."""
    pool = DescriptorPool()
    for module in (
        *(model_config_pb2, grpc_service_pb2, explanation_pb2),
        *(health_pb2, reflection_pb2),
    ):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool

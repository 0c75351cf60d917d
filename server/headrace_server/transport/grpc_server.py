"""The gRPC server: options, services, reflection, and the port."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
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
from headrace_server.transport.certificates import Certificates
from headrace_server.transport.explanation_service import ExplanationService
from headrace_server.transport.grpc_service import InferenceService
from headrace_server.transport.health import HealthReporter
from headrace_server.transport.registration import Registration

OPTIONS: tuple[tuple[str, int], ...] = (
    # What we send is what a model answers; what we take is in `options_of`.
    ("grpc.max_send_message_length", -1),
    # Otherwise a second server on the same port shares it silently instead of failing.
    ("grpc.so_reuseport", 0),
    # Clients that ping to keep idle connections open are welcome.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # gRPC gives up pinging a connection on which nothing else is sent after two pings.
    ("grpc.http2.max_pings_without_data", 0),
    # Whoever connects and says nothing is gone sooner than after gRPC's two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Nothing about windows, frames, read chunks and write buffers: no value of any of them moves
    # 600 kB or 16 MiB for less CPU than gRPC's own, and none is faster throughout (grpcio 1.78).
)


class PortUnavailableError(Exception):
    """The address cannot be listened on; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """What the server takes at most.

    Args:
        max_message_bytes: of one message; a compressed one counts as what it becomes.
        max_connections: at the same time.
        ping_after_s: how long a connection may be silent before the server asks whether its peer
            is still there. gRPC waits for two hours.
        ping_timeout_s: how long the peer may take to answer that, and to take what it is sent at
            all, before the connection and its calls are given up.
        max_calls: under way on one connection; more wait on the caller's side. None for no limit,
            as gRPC has it: where many callers share a connection, one could use up all of it.
        compressed: whether compressed messages are taken. gRPC unpacks them whole before it looks
            at their size: 800 kB became 850 MiB in front of a limit of 10 MB (grpcio 1.78).
    """

    max_message_bytes: int = 256 << 20
    max_connections: int = 4_096
    ping_after_s: float = 60.0
    ping_timeout_s: float = 20.0
    compressed: bool = False
    max_calls: int | None = 8_192


_IDENTITY_ONLY = ("grpc.compression_enabled_algorithms_bitset", 1)

DEFAULT_LIMITS = GrpcLimits()


def options_of(limits: GrpcLimits) -> tuple[tuple[str, int], ...]:
    """The options of gRPC's server under these limits."""
    uncompressed = () if limits.compressed else (_IDENTITY_ONLY,)
    calls = () if limits.max_calls is None else (("grpc.max_concurrent_streams", limits.max_calls),)
    return (
        *OPTIONS,
        *uncompressed,
        *calls,
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.keepalive_time_ms", round(limits.ping_after_s * 1_000)),
        ("grpc.keepalive_timeout_ms", round(limits.ping_timeout_s * 1_000)),
        # While another ping is under way, as gRPC sends to measure bandwidth, that one counts.
        ("grpc.http2.ping_timeout_ms", round(limits.ping_timeout_s * 1_000)),
    )


CODECS = {
    "ModelInfer": (parse_request, serialized),
    "ModelStreamInfer": (parse_request, serialized),
}
"""How messages with large contents are read and written, in the place of the generated way."""


class GrpcServer:
    """Serves the inference, explanation, health and reflection services on one port.

    Args:
        tls: secures the port; None means plain text.
        interceptors: see each call before its service does.
    """

    def __init__(
        self,
        inference: InferenceService,
        explanation: ExplanationService,
        health: HealthReporter,
        *,
        limits: GrpcLimits = DEFAULT_LIMITS,
        tls: Certificates | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._inference = inference
        self._tls = tls
        self._server = grpc.aio.server(interceptors=interceptors, options=options_of(limits))
        # Generated code asks for a server, and uses of it what a `Registration` has.
        methods: Any = Registration(self._server, inference.count_unreadable, CODECS)
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

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port.

        Raises:
            PortUnavailableError: the address is taken or is none of this machine's.
        """
        return await listen(self._server, f"{host}:{port}", self._tls)

    async def start_privately(self, path: Path) -> None:
        """Listen on a Unix socket in the place of a port, in plain text: who may connect is up to
        the directory that it lies in. Raises `PortUnavailableError`."""
        await listen(self._server, f"unix:{path}", None)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give the running ones `grace_s` seconds, and close."""
        self._inference.end_streams()
        await self._server.stop(grace_s)


async def listen(server: grpc.aio.Server, address: str, tls: Certificates | None) -> int:
    """Start a server on an address as gRPC writes them. Returns the port.

    Raises:
        PortUnavailableError: the address is taken or is none of this machine's.
    """
    try:
        bound = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, tls.credentials())
        )
    except RuntimeError:
        bound = 0
    if not bound:
        raise unavailable(address)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_nobody_vanished)
    await server.start()
    return bound


def unavailable(address: str) -> PortUnavailableError:
    """What the operator is told about an address."""
    return PortUnavailableError(
        f"cannot listen for gRPC on {address}: the port is in use or the address is not this "
        "machine's; choose another with --grpc-port or --host"
    )


def _nobody_vanished(record: logging.LogRecord) -> bool:
    """False for what gRPC logs, with a traceback, when a caller vanishes while it is answered: that
    is no error, and callers could fill the disk with it."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


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

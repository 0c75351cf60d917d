"""Who may do what, where there is a tokens file; without one nothing of this runs.

Who calls is found out once per call, before its message is read. Which model, and how much, is
asked for each request, those of a stream too: what a token may do can change while it is open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any

from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.serving import Serving, count_invalid
from headrace_server.rpc.call import Call
from headrace_server.transport.failing import end_with
from headrace_server.transport.metering import Meter
from headrace_server.transport.regions import SIZE_PARAMETER, number_of
from headrace_server.transport.tenants import Tenant, Tenants
from headrace_server.workers.regions import RegionError

_INFERENCE = "/inference.GRPCInferenceService/"

OPEN_METHODS = frozenset(
    {_INFERENCE + name for name in ("ServerLive", "ServerReady", "ModelReady")}
    | {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List"}
    | {"/grpc.health.v1.Health/Watch"}
)
"""Whoever decides where calls go must get an answer without being anybody."""

TENANT_METHODS = frozenset(
    {
        _INFERENCE + name
        for name in (
            *("ModelInfer", "ModelStreamInfer", "ServerMetadata", "ModelMetadata"),
            *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
            # The gate lets in those whose `shared_memory` says so.
            *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister"),
            "SystemSharedMemoryUnregister",
        )
    }
    | {"/headrace.v1.ExplanationService/ExplainModel"}
    | {
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        for version in ("v1alpha", "v1")
    }
)
"""Every tenant may call these; of models each sees its own. All others are for admins."""

_CALLER: ContextVar[bytes] = ContextVar("headrace_caller")
"""The digest of the token that came with the call."""

_SCHEME = "bearer "


class Gate:
    """Lets requests pass, or raises what their callers are told.

    Args:
        tenants: asked each time, so that a changed file counts at once.
        serving: says which models are known, and whose observer counts refusals.
        now: a monotonic clock in seconds.
        meter: holds tenants to their rates.
        max_span_bytes: of one request's inputs that do not come with its message; 0 where none may.
    """

    def __init__(
        self,
        tenants: Callable[[], Tenants],
        serving: Serving,
        now: Callable[[], float],
        meter: Meter | None = None,
        max_span_bytes: int = 0,
    ) -> None:
        self._tenants = tenants
        self._serving = serving
        self._now = now
        self._meter = meter or Meter()
        self._max_span_bytes = max_span_bytes

    def enter(self, method: str, metadata: object) -> None:
        """Find out who calls; what follows in this context is done in that name.

        Raises:
            ServingError: nobody known, or somebody who may not call this method.
        """
        digest = digest_of(metadata)
        tenant = None if digest is None else self._tenants().find(digest)
        if digest is None or tenant is None:
            raise self._counted("", Reason.UNAUTHENTICATED)
        if method not in TENANT_METHODS and not tenant.admin:
            what = f"{method.rpartition('/')[2]}, which is for admins"
            raise self._counted("", Reason.NOT_ALLOWED, what=what)
        _CALLER.set(digest)

    def admit(self, message: pb.ModelInferRequest) -> Tenant:
        """Let one inference request pass, and count it; says whose it is. Raises `ServingError`."""
        model = message.model_name
        tenant = self.check_model(model)
        nbytes = bytes_of(message, self._max_span_bytes if tenant.may_share_memory else 0)
        excess = self._meter.charge(tenant, nbytes, self._now())
        if excess is not None:
            raise self._counted(
                model,
                Reason.RATE_LIMITED,
                limit=f"{excess.rate:,.15g}",
                unit=excess.unit,
                retry_after_s=excess.wait_s,
            )
        return tenant

    def check_model(self, model: str) -> Tenant:
        """Who calls, if they may use this model. Raises `ServingError`."""
        tenant = self._caller()
        if tenant is None:  # taken back while the stream is open
            raise self._counted(model, Reason.UNAUTHENTICATED)
        if not tenant.may_use(model):
            raise self._counted(model, Reason.NOT_ALLOWED, what=f"the use of model '{model}'")
        return tenant

    def sharer(self) -> str:
        """The name of who calls, if they may share memory with the server. Raises
        `ServingError`."""
        tenant = self._caller()
        if tenant is None:
            raise self._counted("", Reason.UNAUTHENTICATED)
        if not tenant.may_share_memory:
            raise self._counted("", Reason.NOT_ALLOWED, what="the use of shared memory")
        return tenant.name

    def allows(self, model: str) -> bool:
        """Whether who calls may use this model."""
        tenant = self._caller()
        return tenant is not None and tenant.may_use(model)

    def _caller(self) -> Tenant | None:
        return self._tenants().find(_CALLER.get())

    def _counted(self, model: str, reason: Reason, **details: object) -> ServingError:
        count_invalid(self._serving, model, reason)
        error = ServingError(reason, **details)
        error.counted = True
        return error


class GateKeeper:
    """Asks the gate about each call, before its message is read."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __call__(self, call: Call) -> None:
        """Refuse the call, or let it go on in the name of who calls."""
        method = call.head.method
        if method not in OPEN_METHODS:
            call.context = copy_context()
            try:
                call.context.run(self._gate.enter, method, call.invocation_metadata())
            except ServingError as error:
                end_with(call, error)


def bytes_of(message: pb.ModelInferRequest, max_span_bytes: int) -> int:
    """What a request weighs: its message, and the inputs that lie in shared memory. Those count as
    what it says they are, before anybody has looked; no more than are ever taken, or one lie would
    leave its tenant in debt for ever."""
    shared = 0
    if max_span_bytes:
        for tensor in message.inputs:
            with suppress(RegionError):  # refused once the request is read
                shared += number_of(tensor.parameters, SIZE_PARAMETER)
    return message.ByteSize() + min(shared, max_span_bytes)


def digest_of(metadata: Any) -> bytes | None:
    """The SHA-256 digest of the one token in `authorization: Bearer ...`; None where there is none,
    or several."""
    found = [value for key, value in metadata or () if key == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str):
        return None
    scheme, token = found[0][: len(_SCHEME)], found[0][len(_SCHEME) :]
    if scheme.lower() != _SCHEME:
        return None
    return hashlib.sha256(token.strip().encode()).digest()

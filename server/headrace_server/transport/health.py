"""The standard health service, for the server and for each model, told by what really happens.

Not grpc's own servicer: it says that everything serves until it is told otherwise, and when one
of several who watch a service leaves, the others are told of no change any more (grpcio 1.78).
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.observer import Observer
from headrace_server.transport.failing import Context
from headrace_server.workers.executor import WorkerState

_Status = health_pb2.HealthCheckResponse

SERVICE = "inference.GRPCInferenceService"


class HealthReporter(Observer, health_pb2_grpc.HealthServicer):
    """Asks the engine whenever somebody asks; nothing is kept that could be out of date.

    Service names: the empty one and `inference.GRPCInferenceService` for the server as a whole,
    and the name of each model, which serves while one of its versions has a live worker. Nothing
    serves before there is an engine.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._watchers: set[asyncio.Event] = set()

    def watch(self, engine: Engine) -> None:
        """From now on report on this engine."""
        self._engine = engine
        self.refresh()

    def refresh(self) -> None:
        """Something may have changed: whoever watches looks again."""
        for watcher in self._watchers:
            watcher.set()

    # -- the service ------------------------------------------------------------------------

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """What is so now; NOT_FOUND for what is neither the server nor a model."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Status(status=status)

    # A coroutine that writes by itself; the stub's types know only generators.
    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """What is so now, and whenever that changes."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            told = None
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != told:
                    await context.write(_Status(status=status))
                    told = status
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> int:
        engine = self._engine
        if service in ("", SERVICE):
            ready = engine is not None and engine.ready()
        elif engine is None:
            return _Status.SERVICE_UNKNOWN
        else:
            versions = [row.version for row in engine.index() if row.model == service]
            if not versions:
                return _Status.SERVICE_UNKNOWN
            ready = any(engine.model_ready(service, version) for version in versions)
        return _Status.SERVING if ready else _Status.NOT_SERVING

    # -- what may have changed it -----------------------------------------------------------

    def models_changed(self) -> None:
        """One came or went, and be it the last."""
        self.refresh()

    def deployment_added(self, deployment: Deployment) -> None:
        """A model that is not ready yet came, or another load of one."""
        self.refresh()

    def deployment_changed(self, deployment: Deployment) -> None:
        """A model became ready, or ceased to be."""
        self.refresh()

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        """The first worker of a model came, or its last one went."""
        if state in (WorkerState.READY, WorkerState.LOST, WorkerState.STOPPED):
            self.refresh()

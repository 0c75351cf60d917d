"""The standard health service, for the server and for each model, told by what really happens."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.observer import Observer
from headrace_server.workers.executor import WorkerState

_Status = health_pb2.HealthCheckResponse

SERVICE = "inference.GRPCInferenceService"


class HealthReporter(Observer):
    """Keeps grpc's health servicer in step with the engine.

    Service names: the empty one and `inference.GRPCInferenceService` for the server as a whole,
    and the name of each model, which serves while one of its versions has a live worker.
    """

    def __init__(self) -> None:
        self.servicer = health.HealthServicer()
        self._engine: Engine | None = None
        self._told: dict[str, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, engine: Engine) -> None:
        """From now on report on this engine."""
        self._engine = engine
        self.refresh()

    def refresh(self) -> None:
        """Compare what was told with what is so, and tell what changed."""
        engine = self._engine
        if engine is None:
            return
        ready = engine.ready()
        now = {**dict.fromkeys(self._told, False), "": ready, SERVICE: ready}
        for deployment in engine.deployments():
            model = deployment.name
            serves = engine.model_ready(model, str(deployment.version))
            now[model] = serves or now.get(model, False)
        for service, serves in now.items():
            if self._told.get(service) is not serves:
                self._told[service] = serves
                self._tell(service, serves)

    def deployment_changed(self, deployment: Deployment) -> None:
        """A model became ready, or ceased to be."""
        self.refresh()

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        """The first worker of a model came, or its last one went."""
        if state in (WorkerState.READY, WorkerState.LOST, WorkerState.STOPPED):
            self.refresh()

    def _tell(self, service: str, serves: bool) -> None:
        status = _Status.SERVING if serves else _Status.NOT_SERVING
        task = asyncio.ensure_future(self.servicer.set(service, status))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

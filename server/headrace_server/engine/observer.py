"""How statistics, metrics and logs learn what happened: observers, which decide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace_server.core.errors import Reason
from headrace_server.core.request import Batch, Request
from headrace_server.workers.executor import BatchTiming, WorkerState

if TYPE_CHECKING:
    from headrace_server.engine.deployment import Deployment


class Observer:
    """Does nothing with everything; subclasses override what they care for.

    Calls come on the event loop, in order, on the path of requests: they must be quick and must
    not raise. A batch is one call, not one per request.
    """

    def deployment_added(self, deployment: Deployment) -> None:
        """A version of a model begins to load, perhaps beside an earlier load of the same one that
        still serves: those are two deployments."""

    def deployment_removed(self, deployment: Deployment) -> None:
        """Its workers have ended and nothing more will be told of it."""

    def deployment_changed(self, deployment: Deployment) -> None:
        """Its `state` is another one now; UNAVAILABLE means that it serves no more."""

    def models_changed(self) -> None:
        """Calls may find other deployments now, or be told something else."""

    def call_invalid(self, model: str, reason: Reason) -> None:
        """A transport refused a call before it became a request.

        `model` is empty unless it names something that is served: it becomes a
        label, and callers must not be able to invent labels.
        """

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        """A request ended without an answer."""

    def request_cancelled(self, deployment: Deployment, request: Request, now: float) -> None:
        """The caller of a request that still waited or ran went away."""

    def batch_dispatched(self, deployment: Deployment, batch: Batch, now: float) -> None:
        """A batch went to its worker."""

    def batch_completed(
        self, deployment: Deployment, batch: Batch, timing: BatchTiming, now: float
    ) -> None:
        """A batch was answered, and whoever waited was told; requests marked `cancelled` had nobody
        waiting any more, and those that `failed` were told why. Comes before any later request is
        read."""

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        """A worker went on in its life; LOST may be followed by STARTING."""


class ObserverGroup(Observer):
    """Several observers as one, told in order."""

    def __init__(self, *members: Observer) -> None:
        self._members = members

    def deployment_added(self, deployment: Deployment) -> None:
        for member in self._members:
            member.deployment_added(deployment)

    def deployment_removed(self, deployment: Deployment) -> None:
        for member in self._members:
            member.deployment_removed(deployment)

    def deployment_changed(self, deployment: Deployment) -> None:
        for member in self._members:
            member.deployment_changed(deployment)

    def models_changed(self) -> None:
        for member in self._members:
            member.models_changed()

    def call_invalid(self, model: str, reason: Reason) -> None:
        for member in self._members:
            member.call_invalid(model, reason)

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        for member in self._members:
            member.request_refused(deployment, request, reason, now)

    def request_cancelled(self, deployment: Deployment, request: Request, now: float) -> None:
        for member in self._members:
            member.request_cancelled(deployment, request, now)

    def batch_dispatched(self, deployment: Deployment, batch: Batch, now: float) -> None:
        for member in self._members:
            member.batch_dispatched(deployment, batch, now)

    def batch_completed(
        self, deployment: Deployment, batch: Batch, timing: BatchTiming, now: float
    ) -> None:
        for member in self._members:
            member.batch_completed(deployment, batch, timing, now)

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        for member in self._members:
            member.worker_state_changed(deployment, worker_id, state)


class RefusalsOf(Observer):
    """Passes on which requests ended without an answer, which workers were lost, and that readiness
    may have changed.

    For a stage of a model: its batches are not the model's, its refusals and losses are.

    Args:
        observer: who is told.
        whole: the deployment that the stage belongs to, in whose name it is told.
    """

    def __init__(self, observer: Observer, whole: Deployment) -> None:
        self._observer = observer
        self._whole = whole

    def request_refused(
        self, deployment: Deployment, request: Request, reason: Reason, now: float
    ) -> None:
        self._observer.request_refused(self._whole, request, reason, now)

    def request_cancelled(self, deployment: Deployment, request: Request, now: float) -> None:
        self._observer.request_cancelled(self._whole, request, now)

    def worker_state_changed(
        self, deployment: Deployment, worker_id: int, state: WorkerState
    ) -> None:
        if state is WorkerState.LOST:
            self._observer.worker_state_changed(self._whole, worker_id, state)
        self._observer.deployment_changed(self._whole)

"""All deployments by model and version: who is served, who is ready, and how everything ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.observer import Observer


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One line of the repository index. `version` is empty for a model with no version at all."""

    model: str
    version: str
    state: str
    reason: str


class Engine:
    """Finds the deployment for a call.

    Deployments are added before they load; models that cannot even be tried are kept with the
    reason, so that the index can say it.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.stopping = False
        self._models: dict[str, dict[int, Deployment]] = {}
        self._broken: dict[tuple[str, str], str] = {}

    def add(self, deployment: Deployment) -> None:
        """Serve one more version of a model. Raises ValueError when it is there already."""
        versions = self._models.setdefault(deployment.name, {})
        if deployment.version in versions:
            raise ValueError(f"{deployment.name} version {deployment.version} is already served")
        versions[deployment.version] = deployment

    def add_broken(self, model: str, version: str, reason: str) -> None:
        """A version (or, with an empty one, a whole model) that cannot even be tried, and why."""
        self._broken[model, version] = reason

    def deployments(self) -> Iterator[Deployment]:
        """Every deployment, models by name, versions in ascending order."""
        for model in sorted(self._models):
            versions = self._models[model]
            yield from (versions[version] for version in sorted(versions))

    def find(self, model: str, version: str = "") -> Deployment:
        """The deployment that answers for this model; the newest ready version by default.

        Raises:
            ServingError: UNKNOWN_MODEL, UNKNOWN_VERSION, MODEL_UNAVAILABLE or STOPPING.
        """
        if self.stopping:
            raise ServingError(Reason.STOPPING)
        deployment = self.look_up(model, version)
        if deployment.state is not DeploymentState.READY:
            raise _unavailable(model, deployment.state)
        return deployment

    def look_up(self, model: str, version: str = "") -> Deployment:
        """Like `find`, but a named version need not be ready. Raises `ServingError`."""
        versions = self._models.get(model)
        if versions is None:
            if any(model == broken for broken, _ in self._broken):
                raise _unavailable(model, DeploymentState.UNAVAILABLE)
            raise ServingError(Reason.UNKNOWN_MODEL, model=model)
        if version:
            named = next((d for number, d in versions.items() if str(number) == version), None)
            if named is None and (model, version) in self._broken:
                raise _unavailable(model, DeploymentState.UNAVAILABLE)
            if named is None:
                raise ServingError(Reason.UNKNOWN_VERSION, model=model, version=version)
            return named
        serving = [v for v, d in versions.items() if d.state is DeploymentState.READY]
        if not serving:
            raise _unavailable(model, versions[max(versions)].state)
        return versions[max(serving)]

    def knows(self, model: str) -> bool:
        """Whether the model has at least one deployment."""
        return model in self._models

    def ready(self) -> bool:
        """Whether everything that should serve can: no deployment loads or lacks a worker, and if
        there are models at all, at least one of them serves."""
        wanted = [d for d in self.deployments() if d.state is not DeploymentState.UNAVAILABLE]
        if self.stopping or not all(deployment.ready for deployment in wanted):
            return False
        return bool(wanted) or not (self._models or self._broken)

    def index(self) -> list[IndexRow]:
        """Every model of the repository with its state."""
        rows = [
            IndexRow(d.name, str(d.version), state.value, reason)
            for d in self.deployments()
            for state, reason in [d.shown]
        ]
        rows += [
            IndexRow(model, version, DeploymentState.UNAVAILABLE.value, reason)
            for (model, version), reason in self._broken.items()
        ]
        return sorted(rows, key=lambda row: (row.model, len(row.version), row.version))

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls, finish the admitted ones; returns whether all were finished in time."""
        self.stopping = True
        finished = await asyncio.gather(*(d.drain(timeout_s) for d in self.deployments()))
        return all(finished)

    async def stop(self) -> None:
        """End every worker."""
        self.stopping = True
        await asyncio.gather(*(d.stop() for d in self.deployments()))


def _unavailable(model: str, state: DeploymentState) -> ServingError:
    """Says why a model in this state does not serve; the index has the whole reason."""
    why = {
        DeploymentState.LOADING: "it is still loading",
        DeploymentState.UNLOADING: "it is being unloaded",
    }.get(state, "it could not be loaded, the repository index says why")
    return ServingError(Reason.MODEL_UNAVAILABLE, model=model, why=why)

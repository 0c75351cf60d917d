"""Which deployment answers for a model, and what a call is told that finds none: pure look-up.

The engine's own deployments are found by it, and those that a front process knows from afar.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Generic, Protocol, TypeVar

from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import DeploymentState


class Listed(Protocol):
    """What can be looked up."""

    @property
    def state(self) -> DeploymentState:
        """Only READY is found."""
        ...


ListedT = TypeVar("ListedT", bound=Listed)


class Catalogue(Generic[ListedT]):
    """Finds the deployment for a call. Subclasses fill `_models`, by name and version, and say what
    else there is."""

    def __init__(self) -> None:
        self.stopping = False
        self._models: dict[str, dict[int, ListedT]] = {}

    def find(self, model: str, version: str = "") -> ListedT:
        """The deployment that answers for this model; the newest ready version by default.

        Raises:
            ServingError: UNKNOWN_MODEL, UNKNOWN_VERSION, MODEL_UNAVAILABLE or STOPPING.
        """
        if self.stopping:
            raise ServingError(Reason.STOPPING)
        deployment = self.look_up(model, version)
        if deployment.state is not DeploymentState.READY:
            raise unavailable(model, deployment.state)
        return deployment

    def look_up(self, model: str, version: str = "") -> ListedT:
        """Like `find`, but a named version need not be ready. Raises `ServingError`."""
        versions = self._models.get(model)
        if not versions:
            raise self._without_deployment(model)
        if version:
            named = next((d for number, d in versions.items() if str(number) == version), None)
            if named is not None:
                return named
            if (model, version) in self._absent():
                raise unavailable(model, DeploymentState.UNAVAILABLE)
            raise ServingError(Reason.UNKNOWN_VERSION, model=model, version=version)
        serving = [v for v, d in versions.items() if d.state is DeploymentState.READY]
        if not serving:
            raise unavailable(model, versions[max(versions)].state)
        return versions[max(serving)]

    def knows(self, model: str) -> bool:
        """Whether the model has at least one deployment."""
        return model in self._models

    def _without_deployment(self, model: str) -> ServingError:
        if model in self._loading():
            return unavailable(model, DeploymentState.LOADING)
        if any(model == absent for absent, _ in self._absent()):
            return unavailable(model, DeploymentState.UNAVAILABLE)
        return ServingError(Reason.UNKNOWN_MODEL, model=model)

    def _loading(self) -> Collection[str]:
        """Names of models that load and that no call finds yet."""
        raise NotImplementedError

    def _absent(self) -> Iterable[tuple[str, str]]:
        """Models and versions that were tried and have no deployment."""
        raise NotImplementedError


def unavailable(model: str, state: DeploymentState) -> ServingError:
    """Says why a model in this state does not serve; the index has the whole reason."""
    why = {
        DeploymentState.LOADING: "it is still loading",
        DeploymentState.UNLOADING: "it is being unloaded",
    }.get(state, "it is not loaded, the repository index says why")
    return ServingError(Reason.MODEL_UNAVAILABLE, model=model, why=why)

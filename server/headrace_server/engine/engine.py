"""All deployments by model and version: who is served, who is ready, and how everything ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from headrace_server.core.errors import ServingError
from headrace_server.engine.catalogue import Catalogue
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.observer import Observer

log = logging.getLogger("headrace.engine")


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One line of the repository index. `version` is empty for a model with no version at all."""

    model: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What calls may find: deployments, names of models that load for the first time, and models
    and versions (empty: all of a model) that were tried and are not there. Those `leaving` still
    take calls that are on their way, and are to get no others."""

    deployments: tuple[Deployment, ...]
    leaving: frozenset[Deployment]
    loading: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]
    stopping: bool


async def _at_once() -> None:
    """All calls are made in this process."""


class Engine(Catalogue[Deployment]):
    """Finds the deployment for a call.

    At the start deployments are added before they load, and the server is not ready until they
    are. Later ones load beside what is served: `announce`, then `switch` or `give_up`. Models that
    cannot even be tried are kept with the reason, so that the index can say it.

    `settled` returns once every call that has found a deployment by now has reached it: at once,
    unless there are catalogues elsewhere.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.starting = False
        """Whether it is not known yet what there is to serve; nothing is ready until then."""
        self.settled: Callable[[], Awaitable[None]] = _at_once
        self._withdrawn = False
        self._broken: dict[tuple[str, str], str] = {}
        self._unloaded: set[tuple[str, int]] = set()
        self._coming: set[Deployment] = set()
        self._leaving: dict[Deployment, asyncio.Task[None]] = {}

    def add(self, deployment: Deployment) -> None:
        """Serve one more version of a model. Raises ValueError when it is there already."""
        versions = self._models.setdefault(deployment.name, {})
        if deployment.version in versions:
            raise ValueError(f"{deployment.name} version {deployment.version} is already served")
        versions[deployment.version] = deployment
        self.observer.models_changed()

    def add_broken(self, model: str, version: str, reason: str) -> None:
        """A version (or, with an empty one, a whole model) that cannot even be tried, and why."""
        self._broken[model, version] = reason
        self.observer.models_changed()

    # -- while others are served ------------------------------------------------------------

    def announce(self, deployment: Deployment) -> None:
        """A deployment that is about to load. No call finds it yet."""
        self._coming.add(deployment)
        self.observer.models_changed()

    async def give_up(self, deployment: Deployment) -> None:
        """One that was announced does not come after all."""
        await deployment.stop()
        self._coming.discard(deployment)
        self.observer.models_changed()

    def switch(self, model: str, new: Sequence[Deployment], kept: Collection[int] = ()) -> None:
        """From now on, calls of this model find these deployments, which were announced, and of
        those before them the versions `kept`. The others finish what was admitted, however long
        that takes, and end."""
        versions = self._models.setdefault(model, {})
        before = [d for d in versions.values() if d.version not in kept and d not in self._leaving]
        for key in [key for key in self._broken if key[0] == model]:
            del self._broken[key]
        self._unloaded = {key for key in self._unloaded if key[0] != model}
        for deployment in new:
            self._coming.remove(deployment)
            versions[deployment.version] = deployment
            self.observer.deployment_changed(deployment)
        for deployment in before:
            # In a task of its own: it begins once all calls that have found the deployment by now
            # have reached it.
            self._leaving[deployment] = asyncio.create_task(self._retire(deployment))
        if not versions:
            del self._models[model]
        self.observer.models_changed()

    async def _retire(self, deployment: Deployment) -> None:
        try:
            await self.settled()
            await deployment.drain(None)
        finally:
            try:
                await deployment.stop()
            finally:
                del self._leaving[deployment]
                self._forget(deployment)
                log.info("model '%s' version %d ended", deployment.name, deployment.version)

    def _forget(self, deployment: Deployment) -> None:
        model, version = deployment.name, deployment.version
        versions = self._models.get(model, {})
        if versions.get(version) is deployment:  # no other one has taken its place
            del versions[version]
            self._unloaded.add((model, version))
            if not versions:
                del self._models[model]
            self.observer.models_changed()

    # -- what is served ---------------------------------------------------------------------

    def deployments(self) -> Iterator[Deployment]:
        """Every deployment that calls may find, models by name, versions in ascending order."""
        for model in sorted(self._models):
            versions = self._models[model]
            yield from (versions[version] for version in sorted(versions))

    def versions_of(self, model: str) -> Sequence[Deployment]:
        """The deployments of one model that are neither leaving nor broken."""
        return [
            deployment
            for deployment in self._models.get(model, {}).values()
            if deployment not in self._leaving and deployment.state is DeploymentState.READY
        ]

    def _everything(self) -> set[Deployment]:
        return {*self.deployments(), *self._coming, *self._leaving}

    def _loading(self) -> Collection[str]:
        return {deployment.name for deployment in self._coming}

    def _absent(self) -> dict[tuple[str, str], str]:
        """What has no deployment, and why."""
        return {
            **{(model, str(version)): "unloaded" for model, version in self._unloaded},
            **self._broken,
        }

    def listed(self) -> Listing:
        """All that a catalogue elsewhere needs to find what this one finds."""
        return Listing(
            tuple(self.deployments()),
            frozenset(self._leaving),
            tuple(self._loading()),
            tuple(self._absent()),
            self.stopping,
        )

    def ready(self) -> bool:
        """Whether everything that should serve can: no deployment loads for the first time or
        lacks a worker, and if there are models at all, at least one of them serves."""
        if self.starting or self.stopping or self._withdrawn:
            return False
        served = [d for d in self.deployments() if d.state is not DeploymentState.UNLOADING]
        wanted = [d for d in served if d.state is not DeploymentState.UNAVAILABLE]
        if not all(deployment.ready for deployment in wanted):
            return False
        return bool(wanted) or not (served or self._broken)

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a call of this model should be sent here, and would find a live worker."""
        if self._withdrawn:
            return False
        try:
            found = self.find(model, version)
            # One that is leaving may still be reached by calls that found it before.
            return found.ready and found not in self._leaving
        except ServingError:
            return False

    def index(self) -> list[IndexRow]:
        """Every model that was ever tried, with its state."""
        rows = {
            (model, version): IndexRow(model, version, DeploymentState.UNAVAILABLE.value, reason)
            for (model, version), reason in self._absent().items()
        }
        # What loads beside a version that is served does not show.
        for deployment in (*self._coming, *self.deployments()):
            state, reason = deployment.shown
            model, version = deployment.name, str(deployment.version)
            if deployment.state is DeploymentState.UNAVAILABLE and (model, version) in rows:
                continue  # it was tried again since, and the row says what came of that
            rows[model, version] = IndexRow(model, version, state.value, reason)
        return sorted(rows.values(), key=lambda row: (row.model, len(row.version), row.version))

    # -- the end ----------------------------------------------------------------------------

    def withdraw(self) -> None:
        """Say that calls should go elsewhere. Those that come all the same are served."""
        self._withdrawn = True

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls, finish the admitted ones; returns whether all were finished in time."""
        self.stopping = True
        finished = await asyncio.gather(*(d.drain(timeout_s) for d in self._everything()))
        return all(finished)

    async def stop(self) -> None:
        """End every worker."""
        self.stopping = True
        retiring = list(self._leaving.values())
        await asyncio.gather(*(d.stop() for d in self._everything()))
        await asyncio.gather(*retiring)

    def kill(self) -> None:
        """End every worker at once; nobody is told anything any more."""
        for deployment in self._everything():
            deployment.kill()

"""Keeps what is served in step with the repository: loads, loads again, and unloads models.

Whatever loads while the server runs does so beside what is served, which goes on until the new one
is warm, and stays if it fails. Either all selected versions of a model load, or nothing changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine, IndexRow
from headrace_server.models.errors import RepositoryError
from headrace_server.models.repository import (
    ModelEntry,
    ModelSource,
    directory_of,
    model_names,
    read_model,
    scan,
)
from headrace_server.models.stamps import Stamp, stamps_of
from headrace_server.workers.executor import ModelLoadError
from headrace_server.workers.placement import available_cores, instance_groups

ControlMode = Literal["none", "poll", "explicit"]

SETTLE_S = 1.0
"""A change that is noticed counts once the files have been left alone for so long: copying a model
into its place takes a while."""

log = logging.getLogger("headrace.engine")


class Deploy(Protocol):
    """Makes a deployment of one version, not loaded yet, that may use so many CPU cores."""

    def __call__(self, entry: ModelEntry, source: ModelSource, cores: int) -> Deployment:
        """Nothing is started yet."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A model directory as it was read, with the stamps of its versions."""

    entry: ModelEntry
    stamps: Mapping[int, Stamp]

    @property
    def problem(self) -> str:
        """Why not all of it can be served; empty where it can."""
        return self.entry.error or "; ".join(self.entry.broken_versions.values())


@dataclass(frozen=True, slots=True)
class _Origin:
    """What a deployment was made from."""

    config: ModelConfig | None
    stamp: Stamp


class ModelControl:
    """Loads models at the start, and then as its mode says: never again (`none`), when the
    repository changes (`poll`), or when somebody asks for it (`explicit`).

    Operations on one model come one after the other. A load whose caller goes away before it is
    done changes nothing.

    Args:
        repository: directory of models.
        cores: CPU cores that the workers of all models share.
    """

    def __init__(
        self, repository: Path, mode: ControlMode, engine: Engine, deploy: Deploy, cores: int
    ) -> None:
        self._repository = repository
        self._mode = mode
        self._engine = engine
        self._deploy = deploy
        self._cores = cores
        self._origins: WeakKeyDictionary[Deployment, _Origin] = WeakKeyDictionary()
        # Of those that are being worked on or waited for: names come from callers, without end.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Loading is CPU work in the workers: more at once than cores only delays the first.
        self._loading = asyncio.Semaphore(available_cores())
        self._seen: dict[str, Found] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def explicit(self) -> bool:
        """Whether callers may have models loaded and unloaded."""
        return self._mode == "explicit"

    def config_of(self, deployment: Deployment) -> ModelConfig | None:
        """The configuration that a deployment was made with, if there was one."""
        origin = self._origins.get(deployment)
        return None if origin is None else origin.config

    async def index(self) -> list[IndexRow]:
        """Every model that was tried, with its state, and the names of those that were not."""
        rows = self._engine.index()
        tried = {row.model for row in rows}
        try:
            names = await asyncio.to_thread(model_names, self._repository)
        except RepositoryError:
            names = []  # what is served is served all the same
        rows += [IndexRow(name, "", "", "") for name in names if name not in tried]
        return sorted(rows, key=lambda row: (row.model, len(row.version), row.version))

    # -- at the start -----------------------------------------------------------------------

    async def start(self, entries: Iterable[ModelEntry]) -> None:
        """Load these models, and return when each is ready or known to be broken."""
        found = await asyncio.to_thread(_with_stamps, entries)
        self._seen = {model.entry.name: model for model in found}
        deployments: list[Deployment] = []
        share = self._share(len(model.entry.versions) for model in found)
        for model in found:
            entry = model.entry
            for number, problem in entry.broken_versions.items():
                self._engine.add_broken(entry.name, str(number), problem)
                log.error("model '%s' version %d cannot be served: %s", entry.name, number, problem)
            if entry.error and not entry.broken_versions:
                self._engine.add_broken(entry.name, "", entry.error)
                log.error("model '%s' cannot be served: %s", entry.name, entry.error)
            for note in entry.notes:
                log.warning("model '%s': %s", entry.name, note)
            deployments += [self._new(model, source, share) for source in entry.versions]
        for deployment in deployments:
            self._engine.add(deployment)
        self._engine.starting = False
        by_model = groupby(deployments, attrgetter("name"))
        first = [self._load_first(model, list(versions)) for model, versions in by_model]
        await asyncio.gather(*first)

    async def _load_first(self, model: str, versions: Sequence[Deployment]) -> None:
        # In the model's turn: calls are taken already, and one may want it unloaded.
        async with self._turn_of(model):
            await asyncio.gather(*map(self._load, versions))
        for version in versions:
            if version.state is not DeploymentState.READY:
                number, reason = version.version, version.reason
                log.error("model '%s' version %d cannot be served: %s", model, number, reason)

    # -- on demand --------------------------------------------------------------------------

    async def load(self, model: str, config: ModelConfig | None = None) -> None:
        """Load a model, again if it is served already; returns once calls find it.

        A model whose instance count alone has changed gets or loses workers. Otherwise every
        version that is to be served is loaded anew, whether or not it has changed.

        Args:
            config: takes the place of config.pbtxt until the next load.

        Raises:
            ServingError: NOT_IN_REPOSITORY, LOAD_FAILED or STOPPING.
        """

        async def work() -> None:
            if model not in await asyncio.to_thread(_names, self._repository):
                raise ServingError(Reason.NOT_IN_REPOSITORY, model=model)
            await self._bring(await asyncio.to_thread(self._read, model, config), anew=True)

        await self._in_turn(model, work())

    async def unload(self, model: str) -> None:
        """Refuse new calls of a model; its workers end once what was admitted is answered.

        Raises:
            ServingError: UNKNOWN_MODEL or STOPPING.
        """

        async def work() -> None:
            if all(row.model != model for row in await self.index()):
                raise ServingError(Reason.UNKNOWN_MODEL, model=model)
            self._unload(model)

        await self._in_turn(model, work())

    # -- by itself --------------------------------------------------------------------------

    async def watch(self, wait: Callable[[float], Awaitable[None]], every_s: float) -> None:
        """Follow the repository until cancelled.

        Args:
            wait: lets so many seconds pass.
            every_s: how often it is looked at.
        """
        seen = self._seen
        while True:
            await wait(every_s)
            try:
                now = await self._look()
                if changed := _changed(seen, now):
                    await wait(SETTLE_S)
                    later = await self._look()
                    # What still changes is looked at again the next time.
                    settled = changed - _changed(now, later)
                    await asyncio.gather(*(self._follow(name, later.get(name)) for name in settled))
                    for name in settled:
                        seen.pop(name, None)
                    seen.update((name, later[name]) for name in settled & later.keys())
            except RepositoryError as error:
                log.warning("the repository cannot be read, what is served stays: %s", error)
            except Exception:
                log.exception("the repository could not be followed")

    async def _look(self) -> dict[str, Found]:
        def look() -> dict[str, Found]:
            return {found.entry.name: found for found in _with_stamps(scan(self._repository))}

        return await asyncio.to_thread(look)

    async def _follow(self, model: str, found: Found | None) -> None:
        async def work() -> None:
            if found is None:
                self._unload(model)
            else:
                await self._bring(found, anew=False)

        try:
            await self._in_turn(model, work())
        except ServingError as error:
            log.debug("model '%s' was not changed: %s", model, error)  # the reason was logged

    # -- inside -----------------------------------------------------------------------------

    async def stop(self) -> None:
        """End whatever is being loaded; nothing is loaded any more."""
        self._stopping = True
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _in_turn(self, model: str, work: Coroutine[Any, Any, None]) -> None:
        """Do this once nothing else is done with the model. Cancelling the caller cancels it."""

        async def alone() -> None:
            try:
                async with self._turn_of(model):
                    await work
            finally:
                work.close()

        if self._stopping:
            work.close()
            raise ServingError(Reason.STOPPING)
        task = asyncio.create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await task
        except asyncio.CancelledError:
            if self._stopping:
                raise ServingError(Reason.STOPPING) from None
            raise

    def _turn_of(self, model: str) -> asyncio.Lock:
        return self._turns.setdefault(model, asyncio.Lock())

    def _read(self, model: str, config: ModelConfig | None) -> Found:
        entry = read_model(directory_of(self._repository, model), config)
        return Found(entry, stamps_of(entry))

    async def _bring(self, found: Found, *, anew: bool) -> None:
        """Serve what was found. `anew` loads what has not changed as well.

        Raises:
            ServingError: LOAD_FAILED; what was served before still is.
        """
        entry = found.entry
        if found.problem:
            raise self._failed(entry.name, found.problem, {})
        before = {d.version: d for d in self._engine.versions_of(entry.name)}
        kept: set[int] = set()
        for source in entry.versions:
            running = before.get(source.version)
            if running is not None and await self._stays(running, found, anew=anew):
                kept.add(source.version)
        share = self._share([len(entry.versions)], besides=entry.name)
        new = [
            self._new(found, source, share)
            for source in entry.versions
            if source.version not in kept
        ]
        await self._load_beside(entry.name, new)
        self._engine.switch(entry.name, new, kept)

    async def _stays(self, running: Deployment, found: Found, *, anew: bool) -> bool:
        """Whether what runs need not be loaded again; it then has the workers it should have."""
        was, now = self._origins[running].stamp, found.stamps[running.version]
        if was == now:
            return not anew
        if not was.differs_in_instances_alone(now):
            return False
        try:
            resized = await running.resize(instance_groups(found.entry.config))
        except ModelLoadError as error:
            raise self._failed(running.name, str(error), {}) from None
        if resized:
            self._origins[running] = _Origin(found.entry.config, now)
            where = ", ".join(running.devices)
            log.info("model '%s' version %d now runs on %s", running.name, running.version, where)
        return resized

    async def _load_beside(self, model: str, new: Sequence[Deployment]) -> None:
        for deployment in new:
            self._engine.announce(deployment)
        try:
            await asyncio.gather(*(self._load(deployment) for deployment in new))
            broken = {d.version: d.reason for d in new if d.state is not DeploymentState.READY}
            if broken:
                why = "; ".join(f"version {number}: {why}" for number, why in broken.items())
                raise self._failed(model, why, broken)
        except BaseException:
            await asyncio.gather(*(self._engine.give_up(deployment) for deployment in new))
            raise

    def _failed(self, model: str, why: str, broken: Mapping[int, str]) -> ServingError:
        """A load that failed: said in the log, to the caller, and in the index if nothing else of
        the model is served."""
        before = self._engine.versions_of(model)
        if not before:
            for number, reason in broken.items() or [("", why)]:
                self._engine.add_broken(model, str(number), reason)
        stays = "; what was served before still is" if before else ""
        log.error("model '%s' could not be loaded: %s%s", model, why, stays)
        return ServingError(Reason.LOAD_FAILED, model=model, why=why)

    def _unload(self, model: str) -> None:
        log.info("model '%s' is being unloaded", model)
        self._engine.switch(model, ())

    def _new(self, found: Found, source: ModelSource, cores: int) -> Deployment:
        deployment = self._deploy(found.entry, source, cores)
        self._origins[deployment] = _Origin(found.entry.config, found.stamps[source.version])
        return deployment

    async def _load(self, deployment: Deployment) -> None:
        async with self._loading:
            await deployment.load()
        if deployment.state is DeploymentState.READY:
            where = ", ".join(deployment.devices)
            log.info(
                "model '%s' version %d is ready on %s", deployment.name, deployment.version, where
            )

    def _share(self, versions: Iterable[int], besides: str = "") -> int:
        """Cores for each version: of those to come, and of those of other models."""
        others = sum(deployment.name != besides for deployment in self._engine.deployments())
        return max(1, self._cores // max(1, others + sum(versions)))


def _names(repository: Path) -> Collection[str]:
    """The models there are; none where the repository cannot be read."""
    try:
        return model_names(repository)
    except RepositoryError:
        return ()


def _with_stamps(entries: Iterable[ModelEntry]) -> list[Found]:
    return [Found(entry, stamps_of(entry)) for entry in entries]


def _changed(before: Mapping[str, Found], now: Mapping[str, Found]) -> set[str]:
    """Models that came, went, or are not what they were."""
    names = before.keys() | now.keys()
    return {name for name in names if _essence(before.get(name)) != _essence(now.get(name))}


def _essence(found: Found | None) -> object:
    """What makes one reading of a model directory equal to another one."""
    return None if found is None else (found.problem, found.stamps)

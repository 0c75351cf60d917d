"""All fronts of a server: starts them, tells them what there is, starts again what was lost."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from headrace_server.engine.clock import Clock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.observer import Observer
from headrace_server.fronts import frames
from headrace_server.fronts.front_process import FrontProcess
from headrace_server.fronts.port import HeldPort
from headrace_server.fronts.registry import Registry
from headrace_server.fronts.shared_meter import SharedMeter
from headrace_server.rpc.sockets import private_directory
from headrace_server.transport.grpc_server import PortUnavailableError
from headrace_server.workers.backoff import Backoff

SETTLE_TIMEOUT_S = 10.0
"""How long a front that lives may take to see what it is told before it is killed: calls that
it sent to what is gone would be refused."""

log = logging.getLogger("headrace.fronts")


class FrontFleet(Observer):
    """Keeps `count` fronts in front of an engine. `prepare`, `start`, then `stop` or `kill`.

    An observer: whatever calls may find is told to all fronts within the same round of the event
    loop.

    Args:
        settings: makes those of a front from its number, the address and the private socket.
    """

    def __init__(
        self, count: int, settings: Callable[[int, str, str], frames.Settings], clock: Clock
    ) -> None:
        self._count = count
        self._settings = settings
        self._clock = clock
        self._engine: Engine | None = None
        self._registry: Registry | None = None
        self._directory: Path | None = None
        self._held: HeldPort | None = None
        self._address = ""
        self._rates = -1
        self._fronts: dict[int, FrontProcess] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._telling: asyncio.Handle | None = None
        self._backoff = Backoff()

    def prepare(self, engine: Engine, host: str, port: int) -> tuple[int, Path]:
        """Take the port, for nobody else to take; returns it, and the path at which the engine's
        process is to serve what fronts pass on.

        Raises:
            PortUnavailableError: the address cannot be listened on.
        """
        self._engine, self._registry = engine, Registry(engine)
        engine.settled = self.settle
        self._held = HeldPort(host, port)
        shown = f"[{host}]" if ":" in host else host
        self._address = f"{shown}:{self._held.port}"
        self._directory = private_directory()
        self._rates = SharedMeter.create()
        return self._held.port, self._passed_on

    async def start(self) -> None:
        """Start every front; returns once all accept connections.

        Raises:
            PortUnavailableError: one cannot.
        """
        problems = await asyncio.gather(*(self._spawn(index) for index in range(self._count)))
        problem = next(filter(None, problems), "")
        if problem:
            raise PortUnavailableError(problem)
        self._watching = [asyncio.create_task(self._keep(index)) for index in range(self._count)]

    async def stop(self, grace_s: float) -> None:
        """End every front, once its calls have ended, and leave nothing behind."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(front.stop(grace_s) for front in self._fronts.values()))
        self._clean_up()

    def kill(self) -> None:
        """End every front at once, and leave nothing behind."""
        for front in self._fronts.values():
            front.kill()
        self._clean_up()

    def _clean_up(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if self._held is not None:
            self._held.release()
        if self._rates >= 0:
            os.close(self._rates)
            self._rates = -1

    # -- what calls may find ----------------------------------------------------------------

    def models_changed(self) -> None:
        """See `Observer`."""
        self.refresh()

    def deployment_changed(self, deployment: Deployment) -> None:
        """See `Observer`."""
        self.refresh()

    def refresh(self) -> None:
        """Tell all fronts, once the changes of this moment are made."""
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)

    async def settle(self) -> None:
        """Return once every call that a front has sent to what it found until now is here."""
        told = self._tell()
        waiting = {
            asyncio.ensure_future(front.told(bundle)): front for front, bundle in told.items()
        }
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=SETTLE_TIMEOUT_S)
            for task in late:
                task.cancel()
                front = waiting[task]
                if front.listening:  # and not still being started, which has a limit of its own
                    log.warning("front process %s does not respond and is killed", front.pid)
                    front.kill()

    def _tell(self) -> dict[FrontProcess, int]:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        assert self._registry is not None, "not prepared"
        table = self._registry.table()
        return {front: front.tell(table) for front in self._fronts.values()}

    # -- processes --------------------------------------------------------------------------

    @property
    def processes(self) -> list[FrontProcess]:
        """The present front of each number."""
        return [self._fronts[index] for index in sorted(self._fronts)]

    @property
    def _passed_on(self) -> Path:
        assert self._directory is not None, "not prepared"
        return self._directory / "engine"

    async def _spawn(self, index: int) -> str:
        """Start one front; returns why it does not accept connections, empty if it does."""
        engine, registry = self._engine, self._registry
        assert engine is not None, "not prepared"
        assert registry is not None, "not prepared"
        front = FrontProcess(engine, registry.deployment, self._clock)
        self._fronts[index] = front
        settings = self._settings(index, self._address, str(self._passed_on))
        problem = await front.spawn(settings, registry.table, self._rates)
        log.debug("front %d is process %s", index, front.pid)
        return problem

    async def _keep(self, index: int) -> None:
        """Start a front again whenever it is lost."""
        losses, load_s = 0, 0.0
        ready_s = time.monotonic()
        problem = ""
        while True:
            front = self._fronts[index]
            if not problem:
                await asyncio.wait((front.lost,))  # which outlives the end of this task
            ready_for_s = time.monotonic() - ready_s
            losses = self._backoff.losses_after(losses, ready_for_s, load_s)
            status = await front.reap()
            delay_s = self._backoff.delay_s(losses)
            why = problem or f"it ended with status {status}"
            log.warning("front %d was lost: %s; starting another one", index, why)
            await asyncio.sleep(delay_s)
            began_s = time.monotonic()
            try:
                problem = await self._spawn(index)
            except OSError as error:
                problem = f"it cannot be started: {error}"
            except Exception:
                # Without this task the front would be missed for as long as the server runs.
                log.exception("front %d cannot be started", index)
                problem = "it cannot be started"
            ready_s = time.monotonic()
            load_s = ready_s - began_s

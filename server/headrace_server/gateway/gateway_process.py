"""The engine's side of the gateway: its port, its process, and another one where that is lost."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from headrace_server.gateway.settings import PING, READY, STOP, Settings, encode_settings
from headrace_server.rpc.server import BACKLOG
from headrace_server.rpc.sockets import bind, private_directory
from headrace_server.workers.backoff import Backoff

START_TIMEOUT_S = 60.0
"""How long a gateway may take to accept connections; it takes a second where there is a core."""

STOP_TIMEOUT_S = 5.0
"""How long it may take to end beyond the grace that it is given."""

PING_EVERY_S = 5.0

HANG_S = 30.0
"""How long a gateway may take to say that it responds: more than any body takes to be read."""

log = logging.getLogger("headrace.gateway")


class GatewayError(Exception):
    """There can be no gateway; the text is one line for the operator."""


class Gateway:
    """Keeps one gateway in front of the engine's process: `prepare`, `start`, then `stop` or
    `kill`.

    The sockets that listen are this side's, so that whoever connects while a lost gateway is
    replaced waits for the next one instead of being refused.

    Args:
        settings: makes those of the process from the path to ask at and its listeners.
    """

    def __init__(self, settings: Callable[[str, tuple[int, ...]], Settings]) -> None:
        self._settings = settings
        self._listeners: list[socket.socket] = []
        self._asks = ""
        self._directory: Path | None = None
        self._grace_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._control: asyncio.StreamWriter | None = None
        self._said: asyncio.StreamReader | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._backoff = Backoff()

    def prepare(self, host: str, port: int, asks: Path | None) -> tuple[int, Path]:
        """Take the port; 0 takes a free one. Returns it, and the path of the Unix socket at which
        the engine's process is to answer.

        Args:
            asks: that path, where there is one already.

        Raises:
            GatewayError: the address cannot be listened on, or aiohttp is not installed.
        """
        if importlib.util.find_spec("aiohttp") is None:
            raise GatewayError(
                "--http-port needs aiohttp: install it with pip install 'headrace[server,http]'"
            )
        try:
            self._listeners, bound = bind(host, port)
            for listener in self._listeners:
                listener.listen(BACKLOG)
        except OSError:
            self._close_listeners()
            raise GatewayError(
                f"cannot listen for HTTP on {host}:{port}: the port is in use or the address is "
                "not this machine's; choose another with --http-port or --host"
            ) from None
        if asks is None:
            self._directory = private_directory()
            asks = self._directory / "engine"
        self._asks = str(asks)
        return bound, asks

    async def start(self) -> None:
        """Return once connections are accepted.

        Raises:
            GatewayError: they cannot be.
        """
        try:
            problem = await self._spawn()
        except OSError as error:
            problem = f"its process cannot be started: {error}"
        if problem:
            raise GatewayError(f"cannot serve HTTP: {problem}")
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Let it end its calls within their grace; wait until it is gone."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._close_listeners()
        if self._control is not None:
            self._control.write(STOP)
            self._control.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), self._grace_s + STOP_TIMEOUT_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._clean_up()

    def kill(self) -> None:
        """End it at once."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._clean_up()

    # -- inside -----------------------------------------------------------------------------

    async def _spawn(self) -> str:
        """Start a process; returns why it does not accept connections, empty if it does."""
        ours, theirs = socket.socketpair()
        descriptors = tuple(listener.fileno() for listener in self._listeners)
        settings = self._settings(self._asks, descriptors)
        self._grace_s = settings.grace_s
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what lies in the current directory is none of its modules
                    "-m",
                    "headrace_server.gateway.gateway_main",
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(), *descriptors),
                    stdin=asyncio.subprocess.DEVNULL,
                    # Signals to the server's process group are for the engine's process alone.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        if self._control is not None:
            self._control.close()
        self._said, self._control = await asyncio.open_connection(sock=ours)
        self._control.write(encode_settings(settings) + b"\n")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                said = await self._said.read(len(READY))
        except TimeoutError:
            self._process.kill()
            return f"it did not accept connections within {START_TIMEOUT_S:g} s"
        except OSError:
            said = b""
        if said == READY:
            log.debug("the gateway is process %s", self._process.pid)
            return ""
        return "it ended while it started"

    async def _keep(self) -> None:
        """Start it again whenever it is lost."""
        losses, load_s = 0, 0.0
        ready_s = time.monotonic()
        problem = ""
        while True:
            assert self._process is not None
            watching = asyncio.create_task(self._kill_if_hung(self._process))
            try:
                status = await self._process.wait()
            finally:
                watching.cancel()
            losses = self._backoff.losses_after(losses, time.monotonic() - ready_s, load_s)
            why = problem or f"it ended with status {status}"
            log.warning("the HTTP gateway was lost: %s; starting another one", why)
            await asyncio.sleep(self._backoff.delay_s(losses))
            began_s = time.monotonic()
            try:
                problem = await self._spawn()
            except OSError as error:
                problem = f"it cannot be started: {error}"
            except Exception:
                # Without this task it would be missed for as long as the server runs.
                log.exception("the HTTP gateway cannot be started")
                problem = "it cannot be started"
            ready_s = time.monotonic()
            load_s = ready_s - began_s

    async def _kill_if_hung(self, process: asyncio.subprocess.Process) -> None:
        """Ask whether it still responds, now and then, and end it if it does not."""
        assert self._control is not None, "not started"
        assert self._said is not None, "not started"
        try:
            while True:
                await asyncio.sleep(PING_EVERY_S)
                self._control.write(PING)
                async with asyncio.timeout(HANG_S):
                    if not await self._said.read(len(READY)):
                        return  # it ends by itself
        except TimeoutError:
            log.warning("gateway process %s does not respond and is killed", process.pid)
            process.kill()
        except OSError:
            pass  # it ends by itself

    def _clean_up(self) -> None:
        self._close_listeners()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

"""`headrace serve`: runs a server until it is told to stop, and says how it starts."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version as release_of
from pathlib import Path

from rich.console import Console

from headrace_server.app import Addresses, Server
from headrace_server.cli.errors import USAGE, CommandError
from headrace_server.cli.loading_view import LoadingView
from headrace_server.cli.summary import print_summary
from headrace_server.config import ConfigurationError, ServerConfig, is_loopback, load_config
from headrace_server.gateway.gateway_process import GatewayError
from headrace_server.models.errors import RepositoryError
from headrace_server.serving_loop import ServingLoop
from headrace_server.telemetry import logs
from headrace_server.telemetry.exposition import MetricsPortError
from headrace_server.transport.certificates import CertificateError
from headrace_server.transport.grpc_server import PortUnavailableError
from headrace_server.transport.tenants import TokensError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

ONE_SIGNAL_S = 0.1
"""What comes so soon after a signal is the same one: `timeout` tells its child first and then its
process group, and a terminal tells both make and what it runs. Nobody presses Ctrl-C so fast."""

log = logging.getLogger("headrace.app")


def serve(repository: Path, arguments: Mapping[str, object], file: Path | None) -> None:
    """Serve until stopped.

    Args:
        repository: directory of models.
        arguments: settings from the command line, by field of `ServerConfig`; None: not given.
        file: TOML file with settings, if any.

    Raises:
        CommandError: the settings make no sense, or the server cannot start.
    """
    try:
        config = load_config(arguments, os.environ, file)
    except ConfigurationError as error:
        raise CommandError(str(error), USAGE) from None
    console = Console(stderr=True, highlight=False)
    watched = config.log_format == "text" and console.is_terminal
    try:
        with asyncio.Runner(loop_factory=ServingLoop) as runner:
            runner.run(_serve(repository, config, console if watched else None))
    except (
        RepositoryError,
        CertificateError,
        TokensError,
        PortUnavailableError,
        MetricsPortError,
        GatewayError,
    ) as error:
        raise CommandError(str(error)) from None


async def _serve(repository: Path, config: ServerConfig, terminal: Console | None) -> None:
    logs.configure(config.log_format, config.log_level)
    view = None if terminal is None else LoadingView(terminal)
    server = Server(repository, config, [] if view is None else [view])
    stop = stop_at_signals(server)
    with view or nullcontext():
        if view is not None:
            # The view tells what the log would, except what went wrong; that appears above it.
            logs.configure(config.log_format, "error" if config.log_level == "error" else "warning")
        addresses = await start(server, stop)
    logs.configure(config.log_format, config.log_level)
    if addresses is None:
        return
    if terminal is not None:
        print_summary(terminal, addresses, server.engine, release_of("headrace"))
    else:
        http = {"http": addresses.http} if addresses.http else {}
        listening = {"grpc": addresses.grpc, **http, "metrics": addresses.metrics}
        log.info("server ready", extra=listening)
    _warn(server, config)
    await stop.wait()
    await server.drain()


async def start(server: Server, stop: asyncio.Event) -> Addresses | None:
    """Start; None when it was to stop before that was done. Whatever happens, nothing is left
    running unless it started."""
    starting = asyncio.ensure_future(server.start())
    told = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.warning("stopping before everything was loaded")
            starting.cancel()
        return await starting
    except asyncio.CancelledError:
        await server.stop()
        return None
    except Exception:
        await server.stop()
        raise
    finally:
        told.cancel()


def stop_at_signals(server: Server, clock: Callable[[], float] = time.monotonic) -> asyncio.Event:
    """Set by the first signal, at whatever moment it comes; a second one, more than `ONE_SIGNAL_S`
    later, ends everything. `clock` is in seconds."""
    stop = asyncio.Event()
    told_s = math.inf

    def on_signal() -> None:
        nonlocal told_s
        if stop.is_set():
            if clock() - told_s < ONE_SIGNAL_S:
                return
            log.warning("second signal: stopping at once")
            server.kill()
            raise SystemExit(1)
        told_s = clock()
        stop.set()

    for name in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(name, on_signal)
    return stop


def _warn(server: Server, config: ServerConfig) -> None:
    exposure = exposed_without(config)
    if exposure:
        log.warning("%s is reachable from other machines, without %s", config.host, exposure)
    if exposes_memory(config):
        log.warning("whoever reaches it may read and write the shared memory of this user")
    if not any(deployment.ready for deployment in server.engine.deployments()):
        log.error("no model is ready: every inference will be refused")


def exposed_without(config: ServerConfig) -> str:
    """What a server that other machines can reach lacks; empty where nothing is missing."""
    if is_loopback(config.host):
        return ""
    lacking = [] if config.tls_cert else ["TLS"]
    if not (config.tokens or config.tls_client_ca):
        lacking.append("authentication")
    return " or ".join(lacking)


def exposes_memory(config: ServerConfig) -> bool:
    """Whether anybody on another machine may name memory of this one."""
    asks_who = config.tokens or config.tls_client_ca
    return config.allow_client_shm and not asks_who and not is_loopback(config.host)

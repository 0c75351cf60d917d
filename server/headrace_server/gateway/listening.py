"""Accepts HTTP connections, as many as may be, and ends those that say nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
from aiohttp import web

from headrace_server.gateway.room import Room
from headrace_server.gateway.service import HttpService
from headrace_server.gateway.settings import Settings
from headrace_server.transport.certificates import CertificateFiles, Certificates

LARGEST_BODIES = 2
"""How many of the largest bodies there is room for at a time; of smaller ones for more."""

GREETING_S = 10.0
"""How long a connection may take to be secured, and then to send the headers of its first call."""

IDLE_S = 75.0
"""How long a connection may be silent between two calls."""

BACKLOG = 4_096


class Listening:
    """Accepts connections while its block lasts, and lets calls end within the grace.

    Args:
        channel: leads to the engine's process.
    """

    def __init__(self, settings: Settings, channel: grpc.aio.Channel) -> None:
        self._settings = settings
        self._silent: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        service = HttpService(
            channel,
            settings.max_body_bytes,
            Room(LARGEST_BODIES * settings.max_body_bytes),
            compressed=settings.compressed,
            on_call=self._called,
        )
        self._runner = web.AppRunner(
            service.application(),
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,  # who hangs up waits for nothing: the engine drops the call
            keepalive_timeout=IDLE_S,
            auto_decompress=settings.compressed,
            shutdown_timeout=settings.grace_s,
        )
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> None:
        await self._runner.setup()
        context = _context(self._settings)
        for descriptor in self._settings.listeners:
            server = await asyncio.get_running_loop().create_server(
                self._connection,
                sock=socket.socket(fileno=descriptor),
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=None if context is None else GREETING_S,
            )
            self._servers.append(server)

    async def __aexit__(self, *error: object) -> None:
        for server in self._servers:
            server.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        serve = self._runner.server
        assert serve is not None
        if len(serve.connections) >= self._settings.max_connections:
            return _SentAway()
        protocol = serve()
        loop = asyncio.get_running_loop()
        self._silent[protocol] = loop.call_later(GREETING_S, self._end_silent, protocol)
        return protocol

    def _called(self, request: web.Request) -> None:
        timer = self._silent.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()

    def _end_silent(self, protocol: web.RequestHandler) -> None:
        del self._silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()


class _SentAway(asyncio.Protocol):
    """Of a connection beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _context(settings: Settings) -> ssl.SSLContext | None:
    """What connections are secured with: each with the files as they are when it comes."""
    if not settings.tls_cert:
        return None
    ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    files = CertificateFiles(Path(settings.tls_cert), Path(settings.tls_key), ca)
    return following(Certificates(files).context)


def following(current: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """A context whose handshakes go on with the current one."""

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = current()

    context = current()
    # Asked once the caller has said hello, whether or not it names a server.
    context.sni_callback = choose
    return context

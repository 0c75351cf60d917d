"""Accepts HTTP connections, as many as may be, and ends those that say nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus

import grpc
from aiohttp import web
from aiohttp.web_request import BaseRequest

from headrace_server.gateway.bodies import Bodies
from headrace_server.gateway.errors import HttpError, refused
from headrace_server.gateway.room import Room
from headrace_server.gateway.service import HttpService, refusal
from headrace_server.gateway.settings import Settings
from headrace_server.rpc.accepting import accept
from headrace_server.transport.certificates import certificates_of
from headrace_server.transport.failing import unexpected
from headrace_server.transport.tenants import Tenants

LARGEST_BODIES = 2
"""How many of the largest bodies there is room for at a time; of smaller ones for more."""

GREETING_S = 10.0
"""How long a connection may take to be secured, and then to send the headers of its first call."""

IDLE_S = 75.0
"""How long a connection may be silent between two calls."""

log = logging.getLogger("headrace.gateway")


class Listening:
    """Accepts connections while its block lasts, and lets calls end within the grace.

    Args:
        channel: leads to the engine's process.
        tenants: who may call, if not everybody.
    """

    def __init__(
        self,
        settings: Settings,
        channel: grpc.aio.Channel,
        tenants: Callable[[], Tenants] | None = None,
    ) -> None:
        self._settings = settings
        service = HttpService(
            channel,
            Bodies(
                settings.max_body_bytes,
                Room(LARGEST_BODIES * settings.max_body_bytes),
                compressed=settings.compressed,
            ),
            tenants=tenants,
            on_call=_has_called,
        )
        self._runner = web.AppRunner(
            service.application(),
            handle_signals=False,
            handler_cancellation=True,  # who hangs up waits for nothing: the engine drops the call
            shutdown_timeout=settings.grace_s,
        )
        self._tls = certificates_of(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> None:
        await self._runner.setup()
        for descriptor in self._settings.listeners:
            listener = socket.socket(fileno=descriptor)
            listener.setblocking(False)
            self._listeners.append(listener)
            accepting = accept(listener, self._full, self._begin)
            self._accepting.append(asyncio.create_task(accepting))

    async def __aexit__(self, *error: object) -> None:
        for task in (*self._accepting, *self._handshakes):
            task.cancel()
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()

    def _full(self) -> bool:
        open_now = len(self._server.connections) + len(self._handshakes)
        return open_now >= self._settings.max_connections

    def _begin(self, accepted: socket.socket) -> None:
        task = asyncio.create_task(self._greet(accepted))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _greet(self, accepted: socket.socket) -> None:
        """Secure a connection with the files as they are now, if that is wanted, and serve it."""
        context = None if self._tls is None else self._tls.context()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else GREETING_S,
            )
        except (OSError, ssl.SSLError):
            accepted.close()

    def _connection(self) -> web.RequestHandler:
        return _Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # its own type says that there is always one
            keepalive_timeout=IDLE_S,
            auto_decompress=self._settings.compressed,
        )

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None, "not set up"
        return server


class _Connection(web.RequestHandler):
    """Ends if its caller says nothing; what is no HTTP is told so as everything else is."""

    __slots__ = ("_greeting",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._greeting = asyncio.get_running_loop().call_later(GREETING_S, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._greeting.cancel()
        super().connection_lost(exc)

    def has_called(self) -> None:
        """The headers of a call have come."""
        self._greeting.cancel()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The last answer of a connection on which something came that is no call."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer has gone already")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            error = refused(unexpected(exc))
        else:
            log.debug("no HTTP came from %s: %s", request.remote, message)
            error = HttpError(
                status, "expected a call over HTTP/1.1: " + " ".join(str(message).split())
            )
        answer = refusal(error)
        answer.force_close()
        return answer


def _has_called(request: web.Request) -> None:
    if isinstance(request.protocol, _Connection):
        request.protocol.has_called()

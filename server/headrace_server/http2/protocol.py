"""A connection on asyncio's transport: reads, writes once per turn of the loop, keeps watch."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_server.http2.connection import Application, Connection
from headrace_server.serving_loop import call_last_of

HELD_BYTES = 256 << 10
"""Handed to asyncio beyond what the kernel took, before streams are told to wait."""


INCOMING_BYTES = 64 << 10
"""Read at a time: several hundred small requests, after which it is another connection's turn."""

LINGER_S = 1.0
"""For a peer, once it has been sent everything, to read why its connection ends and to end its
side. Whoever does not read at all is up to `Watch.ping_timeout_s`."""


@dataclass(frozen=True, slots=True)
class Watch:
    """When a peer is taken to be gone.

    Args:
        greeting_s: how long it may take to say that it speaks HTTP/2.
        ping_after_s: how long it may be silent before it is asked whether it is there.
        ping_timeout_s: how long it may take to answer that, and to take what it is sent at all.
    """

    greeting_s: float = 10.0
    ping_after_s: float = 60.0
    ping_timeout_s: float = 20.0


COPIED_BYTES = 16 << 10
"""Read at a time up to which they are copied first: small pieces of bytes are cheaper to cut than
those of a view. What is longer is mostly one large message, which is put together elsewhere."""

_INCOMING = memoryview(bytearray(INCOMING_BYTES))
"""Of all connections: what comes is taken out of it before anything else is read."""


class Http2Protocol(asyncio.BufferedProtocol):
    """One connection, from when it is accepted.

    Args:
        lost: called when it is over.
    """

    def __init__(
        self, application: Application[Any], watch: Watch, lost: Callable[[Http2Protocol], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._call_last = call_last_of(self._loop)
        self._watch = watch
        self._lost = lost
        self._sends_anyway = self._lingering = False
        self._ended_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._heard_s = self._asked_s = self._loop.time()
        self.connection = Connection(application, self._woken)

    # -- asyncio.BufferedProtocol -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BufferedProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(HELD_BYTES)
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio does this only for sockets that were created as IPPROTO_TCP; without it, small
            # answers wait for the peer's delayed acknowledgement, 40 ms on Linux.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Also where the peer's kernel answers, but its program takes nothing any more.
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # not on macOS
                timeout_ms = round(self._watch.ping_timeout_s * 1_000)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._send()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return _INCOMING

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._heard_s = self._loop.time()
        self._sends_anyway = True
        data = _INCOMING[:nbytes]
        self.connection.receive(bytes(data) if nbytes <= COPIED_BYTES else data)
        self._sends_anyway = False
        self._send()

    def eof_received(self) -> bool:
        """See `asyncio.BufferedProtocol`. Who sends nothing more cannot read either, in HTTP/2."""
        return False

    def pause_writing(self) -> None:
        """See `asyncio.BufferedProtocol`."""
        self.connection.out.pause()

    def resume_writing(self) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._sends_anyway = True
        self.connection.out.proceed()
        self._sends_anyway = False
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.BufferedProtocol`."""
        self._transport = None
        self.connection.lost()
        self._lost(self)

    # -- for the server ---------------------------------------------------------------------

    @property
    def transport(self) -> asyncio.Transport | None:
        """Of asyncio; None before and after."""
        return self._transport

    def tick(self, now: float, passed_s: float) -> None:
        """So much time has passed: ask a silent peer, give up one that does not answer."""
        connection, watch = self.connection, self._watch
        connection.tick(passed_s)
        silent_s = now - self._heard_s
        if connection.ended:
            if connection.out.pending or self._unsent_bytes():
                self._ended_s = now
            elif now - self._ended_s > LINGER_S:
                self.abort()
        elif not connection.greeted:
            if silent_s > watch.greeting_s:
                self.abort()
        elif connection.awaiting_pong:
            if now - self._asked_s > watch.ping_timeout_s:
                self.abort()
        elif silent_s > watch.ping_after_s:
            self._asked_s = now
            connection.ping()

    def shut_down(self) -> None:
        """End with the last call that is under way."""
        self.connection.shut_down()
        self._send()

    def close(self) -> None:
        """End once what is put together has gone."""
        self._send()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End now."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside -----------------------------------------------------------------------------

    def _unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _woken(self) -> None:
        if not self._sends_anyway:
            self._call_last(self._send)

    def _send(self) -> None:
        transport, connection = self._transport, self.connection
        if transport is None:
            return
        while connection.out.pending and not connection.out.paused:
            self._sends_anyway = True
            transport.write(connection.out.take())
            self._sends_anyway = False
        if connection.ended and not connection.out.pending and not self._lingering:
            self._lingering = True
            self._ended_s = self._loop.time()
            # Closed with bytes unread, a socket takes back what its peer has not read yet.
            try:
                if transport.can_write_eof():
                    transport.write_eof()
                else:
                    transport.close()
            except OSError:  # the peer is gone already
                transport.abort()

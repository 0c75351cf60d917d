"""The server: listens, accepts, finds the method of each call, and stops without losing any."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from headrace_server.http2.connection import Application, Connection
from headrace_server.http2.frames import ErrorCode
from headrace_server.http2.headers import block
from headrace_server.http2.protocol import Http2Protocol, Watch
from headrace_server.rpc.accepting import accept
from headrace_server.rpc.assembly import ENCODINGS
from headrace_server.rpc.call import Call
from headrace_server.rpc.head import Head, interpret
from headrace_server.rpc.method import Method
from headrace_server.rpc.sockets import bind

log = logging.getLogger("headrace.rpc")

BACKLOG = 4_096


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """What the server takes at most.

    Args:
        max_message_bytes: of one message; a compressed one counts as what it becomes.
        max_connections: to a port, at the same time; who comes after that is sent away.
        greeting_s: how long a peer may take to say that it speaks HTTP/2.
        ping_after_s: how long a connection may be silent before the server asks whether its peer
            is still there.
        ping_timeout_s: how long the peer may take to answer that, and to take what it is sent at
            all, before the connection and its calls are given up.
        max_calls: under way on one connection to a port; more wait on the caller's side.
        compressed: whether compressed messages are taken.
        stalled_s: how long a large message may come on by less than a window while others of its
            connection wait for the room that it holds, before its call is ended.
    """

    max_message_bytes: int = 256 << 20
    max_connections: int = 4_096
    greeting_s: float = 10.0
    ping_after_s: float = 60.0
    ping_timeout_s: float = 20.0
    max_calls: int = 8_192
    compressed: bool = False
    stalled_s: float = 10.0


DEFAULT_LIMITS = RpcLimits()

Guard = Callable[[Call], None]
ContextOf = Callable[[], ssl.SSLContext]


class RpcApplication:
    """What all connections of a server share: its methods and its calls."""

    def __init__(
        self,
        find: Callable[[str], Method | None],
        limits: RpcLimits,
        guard: Guard | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.max_message_bytes = limits.max_message_bytes
        self.stalled_s = limits.stalled_s
        self.calls: set[Call] = set()
        self._find = find
        self._guard = guard
        self._encodings = ENCODINGS if limits.compressed else ENCODINGS[:1]

    def open(self, connection: Connection, id: int, head: Head, ended: bool, peer: str) -> None:
        """Begin the call that these headers ask for, or end it."""
        call = Call(self, connection, id, head, ended, peer)
        connection.streams[id] = call
        problem = head.problem
        if problem is not None:
            if not problem.http_status:
                call.reset(ErrorCode.PROTOCOL_ERROR)
            elif problem.http_status == 200:
                call.end(problem.code, problem.text)
            else:
                call.over = True
                call.send_end(block((":status", str(problem.http_status))))
            return
        self.calls.add(call)
        call.watch_deadline()
        if self._guard is not None:
            self._guard(call)
            if call.over:
                return
        method = call.method = self._find(head.method)
        if method is None:
            call.end(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {head.method}")
        elif head.encoding not in self._encodings:
            call.end(
                grpc.StatusCode.UNIMPLEMENTED,
                f"expected messages packed with {' or '.join(self._encodings)}, "
                f"got '{head.encoding}'",
                (("grpc-accept-encoding", ",".join(self._encodings)),),
            )
        elif not method.one_request:
            call.start()
        if ended and not call.over:
            call.end_received()


class RpcServer:
    """Serves methods over HTTP/2.

    Args:
        methods: by "/package.Service/Method".
        guard: sees each call before its messages, and may end it.
        fallback: finds a method that is not among `methods`.
        tls: gives the context that the next connection to a port is secured with; None means
            plain text.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        limits: RpcLimits = DEFAULT_LIMITS,
        *,
        guard: Guard | None = None,
        fallback: Callable[[str], Method | None] = lambda name: None,
        tls: ContextOf | None = None,
    ) -> None:
        def find(name: str) -> Method | None:
            return methods.get(name) or fallback(name)

        self._limits = limits
        self._watch = Watch(limits.greeting_s, limits.ping_after_s, limits.ping_timeout_s)
        self._tls = tls
        self._application = RpcApplication(find, limits, guard)
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: set[Http2Protocol] = set()
        self._public: set[Http2Protocol] = set()
        self._gone: asyncio.Event = asyncio.Event()
        self._stopping = False
        self._ticking: asyncio.TimerHandle | None = None
        self._ticked_s = 0.0

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen on every address that the host has; port 0 takes a free one. Returns the port.

        Args:
            shared: other processes may listen on the same port.

        Raises:
            OSError: the address is taken or is none of this machine's.
        """
        listeners, bound = bind(host, port, shared=shared)
        for listener in listeners:
            self._listen(listener, private=False)
        return bound

    async def start_privately(self, path: Path) -> None:
        """Listen on a Unix socket, in plain text and without a limit of connections or calls: for
        those who pass on what any number of callers ask. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
        except OSError:
            listener.close()
            raise
        self._listen(listener, private=True)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give the running ones `grace_s` seconds, and close."""
        self._stopping = True
        self._close_listeners()
        for connection in [*self._connections]:
            connection.shut_down()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until_gone()
        for call in [*self._application.calls]:
            call.expire()
        for task in self._handshakes:
            task.cancel()
        for connection in [*self._connections]:
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await self._until_gone()
        for connection in [*self._connections]:
            connection.abort()
        if self._ticking is not None:
            self._ticking.cancel()

    # -- inside -----------------------------------------------------------------------------

    def _listen(self, listener: socket.socket, *, private: bool) -> None:
        self._listeners.append(listener)
        listener.setblocking(False)
        listener.listen(BACKLOG)
        full = _never if private else self._full
        accepting = accept(listener, full, partial(self._begin, private))
        self._accepting.append(asyncio.create_task(accepting))

    def _full(self) -> bool:
        return len(self._public) + len(self._handshakes) >= self._limits.max_connections

    def _begin(self, private: bool, accepted: socket.socket) -> None:
        task = asyncio.create_task(self._greet(accepted, private=private))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _close_listeners(self) -> None:
        for task in self._accepting:
            task.cancel()
        for listener in self._listeners:
            listener.close()
        self._accepting.clear()
        self._listeners.clear()

    async def _greet(self, accepted: socket.socket, *, private: bool) -> None:
        """Secure a connection, if that is wanted, and serve it."""
        loop = asyncio.get_running_loop()
        application, peer = self._application, _peer(accepted)

        def opened(connection: Connection, id: int, head: Head, ended: bool) -> None:
            application.open(connection, id, head, ended, peer)

        limits = self._limits
        streams = Application(interpret, opened, None if private else limits.max_calls)
        try:
            context = None if private or self._tls is None else self._tls()
            _, protocol = await loop.connect_accepted_socket(
                lambda: Http2Protocol(streams, self._watch, self._lost),
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else limits.greeting_s,
            )
        except (OSError, ssl.SSLError):
            accepted.close()
            return
        if protocol.transport is None:
            return
        self._connections.add(protocol)
        if not private:
            self._public.add(protocol)
        if self._stopping:
            protocol.shut_down()
        if self._ticking is None:
            self._ticked_s = loop.time()
            self._schedule_tick()

    def _lost(self, connection: Http2Protocol) -> None:
        self._connections.discard(connection)
        self._public.discard(connection)
        self._gone.set()

    async def _until_gone(self) -> None:
        while self._connections:
            self._gone.clear()
            await self._gone.wait()

    def _schedule_tick(self) -> None:
        watch = self._watch
        shortest_s = min(1.0, watch.greeting_s, watch.ping_after_s, watch.ping_timeout_s)
        self._ticking = self._application.loop.call_later(max(0.02, shortest_s / 2), self._tick)

    def _tick(self) -> None:
        now = self._application.loop.time()
        passed_s, self._ticked_s = now - self._ticked_s, now
        for connection in [*self._connections]:
            connection.tick(now, passed_s)
        if self._connections:
            self._schedule_tick()
        else:
            self._ticking = None


def _never() -> bool:
    return False


def _peer(connected: socket.socket) -> str:
    """The other side's address, as gRPC writes it."""
    try:
        name = connected.getpeername()
    except OSError:
        return "unknown:"
    if connected.family == socket.AF_INET:
        return f"ipv4:{name[0]}:{name[1]}"
    if connected.family == socket.AF_INET6:
        address = name[0]
        if address.startswith("::ffff:") and "." in address:
            return f"ipv4:{address[7:]}:{name[1]}"
        return f"ipv6:%5B{address}%5D:{name[1]}"
    return "unix:"

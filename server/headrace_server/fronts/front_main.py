"""A front process: accepts connections, reads and checks requests, and has the engine answer them.

Started as `python -m headrace_server.fronts.front_main SOCKET REQUESTS ANSWERS RATES`, all of them
descriptors. It ends when it is told to, or when the engine's process has: at once then, and it
removes the directory of that process's socket, which nobody else would.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import grpc

from headrace.protocol import grpc_service_pb2_grpc
from headrace_server.fronts import forwarding, frames
from headrace_server.fronts.link import Link
from headrace_server.fronts.remote import RemoteEngine
from headrace_server.fronts.segment import NBYTES, Segment
from headrace_server.fronts.shared_meter import SharedMeter
from headrace_server.memory import give_back_freed, keep_one_heap, settle_objects
from headrace_server.rpc.server import RpcLimits, RpcServer
from headrace_server.serving_loop import ServingLoop
from headrace_server.telemetry import logs
from headrace_server.transport.certificates import CertificateError, certificates_of
from headrace_server.transport.gate import Gate, GateKeeper
from headrace_server.transport.grpc_server import CODECS, unavailable
from headrace_server.transport.inferring import InferringService
from headrace_server.transport.registration import Registration
from headrace_server.transport.tenants import TokensError, TokensFile
from headrace_server.transport.unread import UnreadAnswers
from headrace_server.workers.slab import ReadableSlab

ORPHANED_WITHIN_S = 1.0
"""The kernel closes the sockets of a process that ends before it gives its children away."""


def main() -> None:
    """Serve until the engine's process says otherwise."""
    # Service managers signal every process of a service; only the engine's decides about others.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=ServingLoop) as runner:
        runner.run(_run(*map(int, sys.argv[1:5])))


async def _run(connection: int, requests: int, answers: int, rates: int) -> None:
    await _Front(requests, answers, rates).run(socket.socket(fileno=connection))


class _Front:
    def __init__(self, requests: int, answers: int, rates: int) -> None:
        self._parent = os.getppid()
        self._rates = rates
        written = ReadableSlab(requests, NBYTES)
        self._engine = RemoteEngine(Segment(written.view), ReadableSlab(answers, NBYTES).view)
        self._settings: asyncio.Future[frames.Settings] = asyncio.get_running_loop().create_future()
        self._stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._passed_on: Path | None = None

    async def run(self, connection: socket.socket) -> None:
        keep_one_heap()
        link = Link(frames.read_to_front, self._receive, _never_mind, self._abandoned)
        self._engine.attach(link)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=connection)
        settings = await self._settings
        self._passed_on = Path(settings.passed_on)
        logs.configure(cast(Literal["text", "json"], settings.log_format), settings.log_level)
        async with grpc.aio.insecure_channel(
            f"unix:{settings.passed_on}", options=forwarding.OPTIONS
        ) as channel:
            try:
                server, service = self._serve(settings, channel)
                host, _, port = settings.address.rpartition(":")
                await server.start(host, int(port), shared=True)
            except (OSError, CertificateError, TokensError) as error:
                refused = unavailable(settings.address) if isinstance(error, OSError) else error
                link.send(frames.Listening(str(refused)))
                link.close()
                return
            link.send(frames.Listening())
            trimming = asyncio.create_task(give_back_freed())
            settle_objects()
            grace_s = await self._stop
            trimming.cancel()
            service.end_streams()
            await server.stop(grace_s)
        link.close()

    def _serve(
        self, settings: frames.Settings, channel: grpc.aio.Channel
    ) -> tuple[RpcServer, InferringService]:
        gate = None
        if settings.tokens:
            tenants = TokensFile(Path(settings.tokens), time.monotonic).tenants
            gate = Gate(tenants, self._engine, time.monotonic, SharedMeter(self._rates))
        service = InferringService(
            self._engine, gate=gate, unread=UnreadAnswers(settings.unread_bytes)
        )
        inference = _InferenceOnly(service.count_unreadable, CODECS)
        methods: Any = inference
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, methods)
        tls = certificates_of(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        server = RpcServer(
            inference.methods,
            RpcLimits(
                settings.max_message_bytes, settings.max_connections, compressed=settings.compressed
            ),
            guard=None if gate is None else GateKeeper(gate),
            fallback=forwarding.Forwarding(channel).find,
            tls=None if tls is None else tls.http2_context,
        )
        return server, service

    def _receive(self, message: frames.ToFront) -> None:
        match message:
            case frames.Answered():
                self._engine.answered(message)
            case frames.Refused():
                self._engine.refused(message)
            case frames.Table():
                self._engine.update(message)
            case frames.Settings():
                self._settings.set_result(message)
            case frames.Stop():
                self._stop.set_result(message.grace_s)

    def _abandoned(self) -> None:
        """The engine's process is gone: there is nobody to answer for, and nothing to wait for."""
        until_s = time.monotonic() + ORPHANED_WITHIN_S
        while os.getppid() == self._parent and time.monotonic() < until_s:
            time.sleep(0.01)
        # Where it lives after all, only the link has broken, and it starts another front.
        if self._passed_on is not None and os.getppid() != self._parent:
            shutil.rmtree(self._passed_on.parent, ignore_errors=True)
        os._exit(0)


class _InferenceOnly(Registration):
    """Adds the methods of inference; the others are passed on."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        super().add_registered_method_handlers(
            service, {name: handler for name, handler in methods.items() if name in CODECS}
        )


def _never_mind(bundle: int) -> None:
    """Calls say one by one when their memory is free."""


if __name__ == "__main__":
    main()

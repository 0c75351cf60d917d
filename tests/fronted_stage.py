"""Sets the stage for tests of fronts: real front processes before workers pulled by strings."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from headrace.protocol import grpc_service_pb2_grpc as rpc
from headrace_server.engine.clock import LoopClock
from headrace_server.fronts import frames
from headrace_server.fronts.fleet import FrontFleet
from headrace_server.fronts.front_process import FrontProcess
from headrace_server.transport.tenants import TokensFile
from stream_stage import Stage, until

FRONTS = 2
CHANNELS = 16
"""Connections of a test: that all of them come to one front happens once in 30,000 times."""


class FrontedStage(Stage):
    """A `Stage` that is reached through fronts; `channels` are connections of their own."""

    def __init__(self, tokens: Path | None = None) -> None:
        self.tokens = "" if tokens is None else str(tokens)
        self.fleet = FrontFleet(FRONTS, partial(settings_of, tokens=self.tokens), LoopClock())
        gate = None
        if tokens is not None:
            gate = (TokensFile(tokens, time.monotonic).tenants, time.monotonic)
        super().__init__(gate=gate, observers=(self.fleet,))
        self.channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        await self.deployment.load()
        port, self.passed_on = self.fleet.prepare(self.engine, "127.0.0.1", 0)
        await self.server.start_privately(self.passed_on)
        await self.fleet.start()
        self.address = f"127.0.0.1:{port}"
        self.channels = [self.connect() for _ in range(CHANNELS)]
        self.channel = self.channels[0]
        self.stub = rpc.GRPCInferenceServiceStub(self.channel)

    async def stop(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self.channels))
        self.engine.stopping = True
        await self.fleet.stop(0)
        await self.server.stop(0)
        await self.engine.stop()

    def connect(self) -> grpc.aio.Channel:
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.aio.insecure_channel(self.address, options=options)

    @property
    def stubs(self) -> list[Any]:
        return [rpc.GRPCInferenceServiceStub(channel) for channel in self.channels]

    @property
    def fronts(self) -> Sequence[FrontProcess]:
        return self.fleet.processes

    async def kill(self, front: FrontProcess) -> None:
        """End a front as the kernel would that has no memory left, until another one serves."""
        assert front.pid is not None
        os.kill(front.pid, signal.SIGKILL)
        await front.lost

    async def serve_again(self, gone: FrontProcess) -> None:
        await until(lambda: gone not in self.fronts)
        await until(lambda: all(front.listening for front in self.fronts))


def settings_of(index: int, address: str, passed_on: str, tokens: str = "") -> frames.Settings:
    return frames.Settings(
        index=index,
        address=address,
        passed_on=passed_on,
        max_message_bytes=256 << 20,
        max_connections=100,
        compressed=False,
        unread_bytes=64 << 20,
        tls_cert="",
        tls_key="",
        tls_client_ca="",
        tokens=tokens,
        log_format="text",
        log_level="warning",
    )

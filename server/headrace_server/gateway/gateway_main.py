"""The gateway's process: accepts HTTP connections, and has the engine's process answer.

Started as `python -m headrace_server.gateway.gateway_main SOCKET`, a descriptor. It ends when that
socket does: as it is told to, or with the engine's process, whose own socket's directory it removes
then, which nobody else would.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Literal, cast

import grpc

from headrace_server.gateway.listening import Listening
from headrace_server.gateway.settings import PING, READY, STOP, read_settings
from headrace_server.memory import give_back_freed, keep_one_heap
from headrace_server.telemetry import logs
from headrace_server.transport.tenants import TokensFile

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""The engine's process has limits of its own."""


def main() -> None:
    """Serve until the engine's process says otherwise."""
    # Service managers signal every process of a service; only the engine's decides about others.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    keep_one_heap()
    asyncio.run(_run(socket.socket(fileno=int(sys.argv[1]))))


async def _run(control: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=control)
    line = await reader.readline()
    if not line:
        return
    settings = read_settings(line)
    logs.configure(cast(Literal["text", "json"], settings.log_format), settings.log_level)
    tenants = None
    if settings.tokens:
        tenants = TokensFile(Path(settings.tokens), time.monotonic).tenants
    async with (
        grpc.aio.insecure_channel(f"unix:{settings.asks}", options=OPTIONS) as channel,
        Listening(settings, channel, tenants),
    ):
        writer.write(READY)
        trimming = asyncio.create_task(give_back_freed())
        told = await reader.read(1)
        while told == PING:
            writer.write(READY)
            told = await reader.read(1)
        trimming.cancel()
    if told != STOP:
        shutil.rmtree(Path(settings.asks).parent, ignore_errors=True)


if __name__ == "__main__":
    main()

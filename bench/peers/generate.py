"""A generator process that speaks HTTP/1.1 beside gRPC: `python -m bench.peers.generate FD`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from headrace.access import Access
from headrace_server.bench import process
from headrace_server.bench.transport import TRANSPORTS, Transport


class HttpTransport:
    """One connection for each request that is under way, kept for the next. A request is sent as
    it is, head and body."""

    def __init__(self, address: str, timeout_s: float, access: Access) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._timeout_s = timeout_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: bytes) -> str:
        """One request."""
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._idle.pop() if self._idle else await self._connect()
                reader, writer = connection
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(content_length(head))
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            return type(error).__name__
        self._idle.append(connection)
        status = head.split(b" ", 2)[1].decode()
        return "" if status == "200" else status

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


def content_length(head: bytes) -> int:
    """Bytes that follow the head of a response. Raises ValueError where it does not say."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ValueError("expected content-length in the answer")


ALL_TRANSPORTS: Mapping[str, Callable[[str, float, Access], Transport]] = {
    **TRANSPORTS,
    "http": HttpTransport,
}

if __name__ == "__main__":
    process.main(ALL_TRANSPORTS)

"""How a request travels: one small strategy for each `--transport`, behind one interface.

Requests are sent as the bytes they were made into before the run, and answers are not parsed: the
generator's own cost is kept out of the way. Another transport is one more class in `TRANSPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import grpc

from headrace.channels import channel_options
from headrace.errors import server_error

METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Transport(Protocol):
    """Carries the requests of one process. Made and used on a running event loop; any number of
    requests may be under way at once."""

    async def send(self, request: bytes) -> str:
        """Wait for the answer to a serialised `ModelInferRequest`. Returns the reason of the
        failure, empty if there is none; each request fails by itself after its timeout."""
        ...

    async def close(self) -> None:
        """Give up what is under way."""
        ...


class UnaryTransport:
    """One call for each request, all over one connection."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._channel = grpc.aio.insecure_channel(address, channel_options(()))
        # Without serialisers gRPC takes and gives bytes.
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        self._call = self._channel.unary_unary(METHOD)
        self._timeout_s = timeout_s

    async def send(self, request: bytes) -> str:
        """One call."""
        try:
            await self._call(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as failure:
            error = server_error(failure)
            return error.reason or error.code.name
        return ""

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


TRANSPORTS: Mapping[str, Callable[[str, float], Transport]] = {"unary": UnaryTransport}
"""Each takes the server's address (host:port) and the seconds that a request may take."""


def probe(address: str, request: bytes, timeout_s: float) -> None:
    """Send one request and wait for its answer, before a load of its kind is sent.

    Raises:
        ServerError: the call failed.
    """
    with grpc.insecure_channel(address, channel_options(())) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        try:
            call(request, timeout=timeout_s)
        except grpc.RpcError as failure:
            raise server_error(failure) from failure

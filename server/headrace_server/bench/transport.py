"""How a request travels: one small strategy for each `--transport`, behind one interface.

Requests are sent as the bytes they were made into before the run, and answers are not parsed: the
generator's own cost is kept out of the way. (What shares streams the SDK makes into messages, as
for any caller.) Another transport is one more class in `TRANSPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import grpc

from headrace.access import OPEN_ACCESS, Access
from headrace.aio_streams import AsyncStreams
from headrace.errors import ServerError, server_error
from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol.grpc_service_pb2_grpc import GRPCInferenceServiceStub

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

    def __init__(self, address: str, timeout_s: float, access: Access = OPEN_ACCESS) -> None:
        self._channel = access.aio_channel(address)
        # Without serialisers gRPC takes and gives bytes.
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        self._call = self._channel.unary_unary(METHOD)
        self._metadata = access.metadata
        self._timeout_s = timeout_s

    async def send(self, request: bytes) -> str:
        """One call."""
        try:
            await self._call(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as failure:
            return _reason(server_error(failure))
        return ""

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class StreamTransport:
    """What a client with `multiplex=True` does: calls share streams, once one of them is open."""

    def __init__(self, address: str, timeout_s: float, access: Access = OPEN_ACCESS) -> None:
        self._channel = access.aio_channel(address)
        unary = GRPCInferenceServiceStub(self._channel).ModelInfer
        self._call = AsyncStreams(self._channel, unary, access.metadata, True)
        self._metadata = access.metadata
        self._timeout_s = timeout_s

    async def send(self, request: bytes) -> str:
        """One call, over a stream or beside it."""
        message = pb.ModelInferRequest.FromString(request)
        try:
            await self._call(message, timeout=self._timeout_s, metadata=self._metadata)
        except ServerError as error:
            return _reason(error)
        except grpc.aio.AioRpcError as failure:
            return _reason(server_error(failure))
        return ""

    async def close(self) -> None:
        """End the streams, and close the connection."""
        await self._call.close()
        await self._channel.close()


TRANSPORTS: Mapping[str, Callable[[str, float, Access], Transport]] = {
    "unary": UnaryTransport,
    "stream": StreamTransport,
}
"""Each takes the server's address (host:port), the seconds that a request may take, and access."""


def _reason(error: ServerError) -> str:
    return error.reason or error.code.name


def probe(address: str, request: bytes, timeout_s: float, access: Access = OPEN_ACCESS) -> None:
    """Send one request and wait for its answer, before a load of its kind is sent.

    Raises:
        ServerError: the call failed.
    """
    with access.channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        try:
            call(request, timeout=timeout_s, metadata=access.metadata)
        except grpc.RpcError as failure:
            raise server_error(failure) from failure

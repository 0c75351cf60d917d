"""Passes calls on to the engine's process as they are, byte for byte, and their ends back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from headrace.protocol import explanation_pb2, grpc_service_pb2
from headrace_server.rpc.call import EOF, Call
from headrace_server.rpc.head import Metadata
from headrace_server.rpc.method import Method, unary

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""The engine's process has limits of its own."""

_OF_THE_HOP = ("user-agent", "accept-encoding")

_STREAMS = {
    f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
    for file in (grpc_service_pb2, explanation_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Of each method that there is, whether its requests and its answers are streams."""


class Forwarding:
    """Serves every method of the services that the engine's process serves. Deadlines, metadata,
    cancellation, status and trailers go through. Of a method that there is not, nothing is read.

    Not all as streams, which they are on the wire: a call that is refused before its message is
    read may then end as INTERNAL (grpc.aio's write fails before the status has come; 6 % of calls
    without a token, grpcio 1.78).

    Args:
        channel: leads to the engine's process.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._methods = {
            name: self._stream(name, many_requests) if many_answers else self._unary(name)
            for name, (many_requests, many_answers) in _STREAMS.items()
        }
        self._channel = channel

    def find(self, name: str) -> Method | None:
        """The method of this name, if there is one."""
        return self._methods.get(name)

    def _unary(self, name: str) -> Method:
        async def forward(message: bytes, call: Call) -> bytes:
            connect: Any = self._channel.unary_unary(name)
            passed = connect(
                bytes(message), timeout=call.time_remaining(), metadata=_metadata(call)
            )
            del message
            answer: bytes = b""
            try:
                answer = await passed
            except grpc.aio.AioRpcError:
                pass  # the status below says it
            finally:
                passed.cancel()
            await _end_like(passed, call)
            return answer

        return unary(forward)

    def _stream(self, name: str, many_requests: bool) -> Method:
        async def messages(call: Call) -> AsyncIterator[bytes]:
            while (message := await call.read()) is not EOF:
                yield bytes(message)

        async def forward(call: Call) -> None:
            channel = self._channel
            connect: Any = channel.stream_stream if many_requests else channel.unary_stream
            sent = messages(call) if many_requests else bytes(await call.read())
            passed = connect(name)(sent, timeout=call.time_remaining(), metadata=_metadata(call))
            try:
                async for answer in passed:
                    await call.write(answer)
            except grpc.aio.AioRpcError:
                pass
            finally:
                passed.cancel()
            await _end_like(passed, call)

        return Method(forward, one_request=not many_requests)


def _metadata(call: Call) -> Metadata:
    return tuple(entry for entry in call.invocation_metadata() if entry[0] not in _OF_THE_HOP)


async def _end_like(passed: Any, call: Call) -> None:
    """End a call as the one ended that it was passed on as."""
    code, trailers = await passed.code(), tuple(await passed.trailing_metadata() or ())
    if code is not grpc.StatusCode.OK:
        await call.abort(code, await passed.details() or "", trailers)
    call.set_trailing_metadata(trailers)

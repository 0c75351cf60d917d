"""Passes calls on to the engine's process as they are, byte for byte, and their ends back."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from headrace.protocol import explanation_pb2, grpc_service_pb2
from headrace_server.transport.failing import Context, abort

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""The engine's process has limits of its own."""

_OF_THE_HOP = ("user-agent", "te", "content-type", "accept-encoding")

_KINDS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

_STREAMS = {
    f"/{service.full_name}/{method.name}": (method.client_streaming, method.server_streaming)
    for file in (grpc_service_pb2, explanation_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Of each method that there is, whether its requests and its answers are streams."""


class Forwarding(grpc.GenericRpcHandler):
    """Handles every method of the services that the engine's process serves. Deadlines, metadata,
    cancellation, status and trailers go through. Of a method that there is not, nothing is read.

    Not all as streams, which they are on the wire: a call that is refused before its message is
    read may then end as INTERNAL (grpc.aio's write fails before the status has come; 6 % of calls
    without a token, grpcio 1.78).

    Args:
        channel: leads to the engine's process.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """See `grpc.GenericRpcHandler`."""
        method = handler_call_details.method
        streams = _STREAMS.get(method)
        if streams is None:
            return None
        metadata = tuple(
            (key, value)
            for key, value in handler_call_details.invocation_metadata or ()
            if key not in _OF_THE_HOP and not key.startswith("grpc-")
        )

        async def forward_one(message: bytes, context: Context) -> bytes:
            connect: Any = self._channel.unary_unary(method)
            call = connect(message, timeout=context.time_remaining(), metadata=metadata)
            del message
            answer: bytes = b""
            try:
                answer = await call
            except grpc.aio.AioRpcError:
                pass  # the status below says it
            finally:
                call.cancel()
            await _end_like(call, context)
            return answer

        async def forward_stream(messages: Any, context: Context) -> None:
            channel = self._channel
            connect: Any = channel.stream_stream if streams[0] else channel.unary_stream
            call = connect(method)(messages, timeout=context.time_remaining(), metadata=metadata)
            try:
                async for answer in call:
                    await context.write(answer)
            except grpc.aio.AioRpcError:
                pass
            finally:
                call.cancel()
            await _end_like(call, context)

        return _KINDS[streams](forward_stream if streams[1] else forward_one)


async def _end_like(call: Any, context: Context) -> None:
    """End a call as the one ended that it was passed on as."""
    code, trailers = await call.code(), tuple(await call.trailing_metadata() or ())
    if code is not grpc.StatusCode.OK:
        await abort(context, code, await call.details() or "", trailers)
    context.set_trailing_metadata(trailers)

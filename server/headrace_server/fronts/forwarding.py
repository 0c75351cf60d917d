"""Passes calls on to the engine's process as they are, byte for byte, and their ends back."""

from __future__ import annotations

from typing import Any

import grpc

from headrace_server.transport.failing import Context

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""The engine's process has limits of its own."""

_OF_THE_HOP = ("user-agent", "te", "content-type", "accept-encoding")


_WATCH = "/grpc.health.v1.Health/Watch"
_REFLECTION = frozenset(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
)


class Forwarding(grpc.GenericRpcHandler):
    """Handles every method there is, and knows of none but whether it is a stream. Deadlines,
    metadata, cancellation, status and trailers go through; who the caller is, the engine's process
    finds out from the metadata.

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
        metadata = tuple(
            (key, value)
            for key, value in handler_call_details.invocation_metadata or ()
            if key not in _OF_THE_HOP and not key.startswith("grpc-")
        )
        connect: Any

        async def forward_one(message: bytes, context: Context) -> bytes:
            call = connect(message, timeout=context.time_remaining(), metadata=metadata)
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
            call = connect(messages, timeout=context.time_remaining(), metadata=metadata)
            try:
                async for answer in call:
                    await context.write(answer)
            except grpc.aio.AioRpcError:
                pass
            finally:
                call.cancel()
            await _end_like(call, context)

        if method in _REFLECTION:
            connect = self._channel.stream_stream(method)
            return grpc.stream_stream_rpc_method_handler(forward_stream)
        if method == _WATCH:
            connect = self._channel.unary_stream(method)
            return grpc.unary_stream_rpc_method_handler(forward_stream)
        connect = self._channel.unary_unary(method)
        return grpc.unary_unary_rpc_method_handler(forward_one)


async def _end_like(call: Any, context: Context) -> None:
    """End a call as the one ended that it was passed on as."""
    code, trailers = await call.code(), tuple(await call.trailing_metadata() or ())
    if code is not grpc.StatusCode.OK:
        await context.abort(code, await call.details() or "", trailers)
    context.set_trailing_metadata(trailers)

"""Passes calls on to the engine's process as they are, byte for byte, and their ends back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from headrace_server.transport.failing import Context

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""The engine's process has limits of its own."""

_OF_THE_HOP = ("user-agent", "te", "content-type", "accept-encoding")


class Forwarding(grpc.GenericRpcHandler):
    """Handles every method there is, none of which it knows: unary ones are streams of one message
    on the wire. Deadlines, metadata, cancellation, status and trailers go through; who the caller
    is, the engine's process finds out from the metadata.

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

        async def forward(messages: AsyncIterator[bytes], context: Context) -> None:
            connect: Any = self._channel.stream_stream(method)
            call = connect(messages, timeout=context.time_remaining(), metadata=metadata)
            try:
                async for answer in call:
                    await context.write(answer)
            except grpc.aio.AioRpcError:
                pass  # the status below says it
            finally:
                call.cancel()
            code, trailers = await call.code(), tuple(await call.trailing_metadata() or ())
            if code is not grpc.StatusCode.OK:
                await context.abort(code, await call.details() or "", trailers)
            context.set_trailing_metadata(trailers)

        return grpc.stream_stream_rpc_method_handler(forward)

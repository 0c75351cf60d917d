"""An answer that is no message, which grpc.aio hands out as None."""

from __future__ import annotations

import grpc
import pytest

from headrace.aio import AsyncClient
from headrace.errors import InvalidResponse


async def test_an_answer_that_cannot_be_read_is_an_error_of_ours() -> None:
    async def nonsense(request: bytes, context: object) -> bytes:
        return b"\xff\xff\xff"

    server = grpc.aio.server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(nonsense)
        for name in ("ModelInfer", "ModelMetadata", "ServerLive")
    }
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(InvalidResponse, match="no message"):
                await client.server_live()
            with pytest.raises(InvalidResponse, match="no message"):
                await client.model_metadata("any")
    finally:
        await server.stop(0)

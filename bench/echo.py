"""The least a call can cost in Python: a grpc.aio server that sends the input back, both ways."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc


class Echo(rpc.GRPCInferenceServiceServicer):
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> Any:
        response = pb.ModelInferResponse()
        fill(response, request)
        return response

    async def ModelStreamInfer(  # type: ignore[override]
        self, requests: object, context: Any
    ) -> None:
        while isinstance(request := await context.read(), pb.ModelInferRequest):
            message = pb.ModelStreamInferResponse()
            fill(message.infer_response, request)
            await context.write(message)


def fill(response: pb.ModelInferResponse, request: pb.ModelInferRequest) -> None:
    response.model_name, response.id = request.model_name, request.id
    for given, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        response.outputs.add(name="output", datatype=given.datatype, shape=given.shape)
        response.raw_output_contents.append(raw)


async def serve() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    rpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    # Ends when whoever started it closes our standard input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve())

"""The least a call can cost in Python: a grpc.aio server that sends the input back, both ways.

    python -m bench.echo [--port PORT]

Without a port it takes a free one, prints it, and ends with its standard input; with one, it runs
until it is killed.
"""

from __future__ import annotations

import argparse
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


async def serve(port: int) -> None:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=options)
    rpc.add_GRPCInferenceServiceServicer_to_server(Echo(), server)
    print(server.add_insecure_port(f"127.0.0.1:{port}"), flush=True)
    await server.start()
    if port:
        await server.wait_for_termination()
    # Ends when whoever started it closes our standard input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(serve(parser.parse_args().port))

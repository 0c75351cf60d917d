"""The least a call can cost in Python: a grpc.aio server that sends the input back, both ways.

    python -m bench.echo [--port PORT] [--hold]

Without a port it takes a free one, prints it, and ends with its standard input; with one, it runs
until it is killed. With `--hold` every call waits for its turn: 16 of them are answered every 8 ms,
as by a model that takes so long.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from typing import Any

import grpc

from headrace.protocol import grpc_service_pb2 as pb
from headrace.protocol import grpc_service_pb2_grpc as rpc

HELD_ROWS, HELD_S = 16, 0.008


class Echo(rpc.GRPCInferenceServiceServicer):
    def __init__(self, *, hold: bool) -> None:
        self._held: deque[asyncio.Future[None]] | None = deque() if hold else None

    async def let_go(self) -> None:
        """Answer some of those that are held, again and again."""
        while self._held is not None:
            await asyncio.sleep(HELD_S)
            for _ in range(min(HELD_ROWS, len(self._held))):
                self._held.popleft().set_result(None)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> Any:
        if self._held is not None:
            turn = asyncio.get_running_loop().create_future()
            self._held.append(turn)
            await turn
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


async def serve(port: int, *, hold: bool) -> None:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=options)
    echo = Echo(hold=hold)
    rpc.add_GRPCInferenceServiceServicer_to_server(echo, server)
    letting_go = asyncio.create_task(echo.let_go())
    print(server.add_insecure_port(f"127.0.0.1:{port}"), flush=True)
    await server.start()
    if port:
        await server.wait_for_termination()
    # Ends when whoever started it closes our standard input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    letting_go.cancel()
    await server.stop(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.port, hold=options.hold))

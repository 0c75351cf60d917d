"""Callers that do not read, say nothing or vanish, on real sockets: what a server holds of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace.large_messages import INFER_METHOD
from headrace.multiplexing import METHOD as STREAM_METHOD
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.testing import ServerProcess
from headrace_server.transport import unread
from reading_metrics import metric
from wire.peer import Closed, deaf, message, request
from written_models import write_model

pytestmark = pytest.mark.e2e

MIB = 1 << 20
COPIES = 5
"""Of an answer until it is read, see `unread.MAX_BYTES`, and one more where gRPC is busy."""

LARGE = """
    import time
    import torch
    from headrace_server import Model, TensorSpec

    class Large(Model):
        inputs = [TensorSpec("n", "INT64", [1])]
        outputs = [TensorSpec("y", "UINT8", [-1])]

        def forward(self, n):
            return torch.zeros(len(n), int(n.max()), dtype=torch.uint8)
"""
SLOW = """
    import time
    from headrace_server import Model, TensorSpec

    class Slow(Model):
        inputs = [TensorSpec("n", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]

        def forward(self, n):
            time.sleep(0.3)
            return n
"""
HANGING = """
import asyncio, sys
import numpy as np
from headrace.aio import AsyncClient
from headrace.large_messages import INFER_METHOD
from headrace.multiplexing import METHOD as STREAM_METHOD

async def main():
    async with AsyncClient(sys.argv[1], multiplex=sys.argv[2] == "stream") as client:
        calls = [
            asyncio.ensure_future(client.infer("slow", {"n": np.array([[i]])}))
            for i in range(500)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        print("waiting", flush=True)
        await asyncio.wait(calls)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository: Path = tmp_path_factory.mktemp("connections")
    write_model(repository, "large", LARGE, "max_batch_size: 1")
    write_model(repository, "slow", SLOW, "max_batch_size: 1")
    with ServerProcess(repository) as running:
        yield running
        # Whatever callers do is no error of the server's.
        assert not [line for line in running.log if '"level": "error"' in line]


def resident(pid: int) -> int:
    """Bytes of memory that a process occupies."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def asking(model: str, value: int) -> bytes:
    message = pb.ModelInferRequest(model_name=model, id=str(value))
    message.inputs.add(name="n", datatype="INT64", shape=[1, 1])
    message.raw_input_contents.append(value.to_bytes(8, "little"))
    return message.SerializeToString()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def answered(server: ServerProcess, model: str) -> float:
    return metric(server, f'headrace_requests_total{{model="{model}",version="1",outcome="ok"}}')


def refused_unread(server: ServerProcess) -> float:
    labels = 'model="large",version="",reason="answers_unread"'
    return metric(server, f"headrace_refusals_total{{{labels}}}")


async def still_serves(server: ServerProcess) -> None:
    async with AsyncClient(server.grpc_address, timeout=30.0) as client:
        result = await client.infer("large", {"n": np.array([[3 * MIB]])})
    assert result["y"].shape == (1, 3 * MIB)


@pytest.mark.parametrize("streams", [0, 8], ids=["calls", "streams"])
async def test_who_does_not_read_holds_a_bounded_share_and_leaves_room_for_others(
    server: ServerProcess, streams: int
) -> None:
    await still_serves(server)
    before, asked, refused = resident(server.pid), 600, refused_unread(server)
    done = answered(server, "large")
    with deaf(server.grpc_address) as caller:
        if streams:
            opened = [caller.open(STREAM_METHOD) for _ in range(streams)]
            for number in range(asked):
                caller.data(opened[number % streams], message(asking("large", MIB)))
        else:
            for _ in range(asked):
                caller.open(INFER_METHOD, asking("large", MIB), end=True)

        def settled() -> bool:
            return answered(server, "large") - done + refused_unread(server) - refused >= asked

        until(settled, 90.0)
        assert resident(server.pid) - before < COPIES * unread.MAX_BYTES / 2 + 200 * MIB
        assert refused_unread(server) > refused
        await still_serves(server)
    until(lambda: resident(server.pid) - before < 300 * MIB)


def test_idle_connections_cost_little_and_silent_ones_are_closed(server: ServerProcess) -> None:
    before = resident(server.pid)
    host, _, port = server.grpc_address.rpartition(":")
    idle = [deaf(server.grpc_address) for _ in range(200)]
    silent = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        for one in silent:
            one.settimeout(30.0)
            while one.recv(1 << 12):  # its settings, and then the end
                pass
        assert not idle[0].closed_by_peer(0.1)
        assert resident(server.pid) - before < 400 * 64 * 1024
    finally:
        for one in silent:
            one.close()
        for other in idle:
            other.socket.close()


async def test_idle_streams_cost_little_and_end_with_their_connection(
    server: ServerProcess,
) -> None:
    before = resident(server.pid)
    with deaf(server.grpc_address) as connection:
        for _ in range(1_000):
            connection.open(STREAM_METHOD)
        await still_serves(server)
        await asyncio.sleep(1.0)
        assert resident(server.pid) - before < 1_000 * 64 * 1024
    await still_serves(server)


@pytest.mark.parametrize("way", ["unary", "stream"])
async def test_a_caller_that_is_killed_takes_its_waiting_requests_back(
    server: ServerProcess, way: str
) -> None:
    labels = 'model="slow",version="1",outcome="cancelled"'
    # Some may be answered before: three in a second.
    before = metric(server, f"headrace_requests_total{{{labels}}}")
    caller = subprocess.Popen(
        [sys.executable, "-c", HANGING, server.grpc_address, way], stdout=subprocess.PIPE
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"waiting\n"
    os.kill(caller.pid, signal.SIGKILL)
    caller.communicate()
    until(lambda: metric(server, f"headrace_requests_total{{{labels}}}") >= before + 200)
    until(lambda: metric(server, 'headrace_queue_requests{model="slow",version="1"}') == 0)


def test_a_reset_takes_waiting_requests_back_too(server: ServerProcess) -> None:
    queued = 'headrace_queue_requests{model="slow",version="1"}'
    connection = deaf(server.grpc_address)
    stream = connection.open(STREAM_METHOD)
    for _ in range(50):
        connection.data(stream, message(asking("slow", 1)))
        connection.open(INFER_METHOD, asking("slow", 1), end=True)
    until(lambda: metric(server, queued) >= 90)
    connection.reset()
    until(lambda: metric(server, queued) == 0, 15.0)  # one by one they would take half a minute


async def test_huge_metadata_is_refused_without_being_kept(server: ServerProcess) -> None:
    before = resident(server.pid)
    huge = request(INFER_METHOD, ("x-huge", "a" * (8 * MIB)))
    with deaf(server.grpc_address) as connection:
        with suppress(Closed):  # it may end while the rest is still being said
            for _ in range(4):
                connection.data(connection.begin(huge), message(asking("large", 1)), end=True)
        await still_serves(server)
        assert resident(server.pid) - before < 64 * MIB

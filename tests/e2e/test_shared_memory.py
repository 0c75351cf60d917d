"""The SDK's shared memory against a real server: answers, nothing left behind, clear refusals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import AsyncClient, Client, InvalidInput, NotFound, RetryPolicy, Unimplemented
from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.testing import ServerProcess
from shared_memory import DIRECTORY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm"),
]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    assert not names(os.getpid())


def names(pid: int) -> set[str]:
    return {name for name in os.listdir(DIRECTORY) if name.startswith(f"headrace-{pid}-")}


def regions(address: str) -> int:
    with Client(address) as client:
        status = client._stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
        return len(status.regions)


def test_inputs_and_outputs_stay_in_shared_memory(sharing_server: ServerProcess) -> None:
    with Client(sharing_server.grpc_address) as client:
        with client.shared_memory(1 << 16) as memory:
            x, y = memory.empty((5, 3), np.int64), memory.empty((8, 3), np.int64)
            x[:] = np.arange(15).reshape(5, 3)
            assert np.array_equal(client.infer("affine", {"x": x})["y"], 2 * x + 1)
            result = client.infer("affine", {"x": x}, into={"y": y})
            assert np.shares_memory(result["y"], y)
            assert np.array_equal(result["y"], 2 * x + 1)
            assert np.array_equal(y[:5], 2 * x + 1)
            assert regions(sharing_server.grpc_address) == 1
            assert not names(os.getpid()), "its name is needed only until the server has opened it"
        assert regions(sharing_server.grpc_address) == 0
        assert np.array_equal(client.infer("affine", {"x": x})["y"], 2 * x + 1), "sent again"
        with pytest.raises(InvalidInput, match="expected an array made by this client's"):
            client.infer("affine", {"x": x}, into={"y": y})


@pytest.mark.parametrize("multiplex", [False, True])
async def test_many_calls_share_one_memory(sharing_server: ServerProcess, multiplex: bool) -> None:
    async with (
        AsyncClient(sharing_server.grpc_address, multiplex=multiplex) as client,
        client.shared_memory(1 << 20) as memory,
    ):

        async def caller(number: int) -> None:
            rows = number % 7 + 1
            x, y = memory.empty((rows, 3), np.int64), memory.empty((rows, 3), np.int64)
            for turn in range(20):
                x[:] = 1_000 * number + turn
                result = await client.infer("affine", {"x": x}, into={"y": y})
                assert (result["y"] == 2 * (1_000 * number + turn) + 1).all()

        await asyncio.gather(*(caller(number) for number in range(32)))


async def test_a_request_that_breaks_its_worker_is_read_again_from_its_memory(
    sharing_server: ServerProcess,
) -> None:
    async with (
        AsyncClient(sharing_server.grpc_address) as client,
        client.shared_memory(4_096) as memory,
    ):
        x = memory.empty((16, 1))
        x[:, 0] = [*range(15), -2]

        async def ask(row: int) -> float:
            answer = await client.infer("fragile", {"x": x[row : row + 1]})
            return float(answer["y"].item())

        answers = await asyncio.gather(*map(ask, range(16)), return_exceptions=True)
        assert answers[:15] == [2.0 * row for row in range(15)]
        assert isinstance(answers[15], Exception)


def test_a_killed_client_leaves_no_name_and_its_memory_goes_with_the_next(
    sharing_server: ServerProcess,
) -> None:
    program = f"""
import time
from headrace import Client
with Client("{sharing_server.grpc_address}") as client, client.shared_memory(1 << 20) as memory:
    print("shared", flush=True)
    time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "shared\n"
        assert regions(sharing_server.grpc_address) == 1
        child.send_signal(signal.SIGKILL)
    assert not names(child.pid)
    with Client(sharing_server.grpc_address) as client, client.shared_memory(1) as memory:
        assert memory.nbytes == 1
        assert regions(sharing_server.grpc_address) == 1


def test_memory_that_its_client_cut_short_is_one_error_and_the_server_lives(
    sharing_server: ServerProcess,
) -> None:
    with Client(sharing_server.grpc_address, retry=RetryPolicy(max_attempts=1)) as client:
        with client.shared_memory(1 << 16) as memory:
            x = memory.empty((4, 3), np.int64)
            x[:] = 1
            os.truncate(descriptor_of(memory.name), 0)
            with pytest.raises(Exception, match="has shrunk since it was registered"):
                client.infer("affine", {"x": x})
        fine = np.ones((1, 3), np.int64)
        assert (client.infer("affine", {"x": fine})["y"] == 3).all()


def descriptor_of(name: str) -> str:
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink() and name in os.readlink(entry):
            return str(entry)
    raise AssertionError(f"no descriptor of {name} is open")


def test_a_server_that_shares_nothing_says_how_it_would(callable_server: ServerProcess) -> None:
    with (
        Client(callable_server.grpc_address) as client,
        pytest.raises(Unimplemented, match="--allow-client-shm"),
        client.shared_memory(8),
    ):
        pass


def test_memory_that_the_server_has_forgotten_is_not_found(sharing_server: ServerProcess) -> None:
    with Client(sharing_server.grpc_address) as client, client.shared_memory(4_096) as memory:
        x = memory.empty((1, 3), np.int64)
        client._stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        with pytest.raises(NotFound, match="Unable to find shared memory region"):
            client.infer("affine", {"x": x})

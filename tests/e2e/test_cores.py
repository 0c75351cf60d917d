"""Cores and threads of real workers: nobody takes more than its share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import Client
from headrace_server.testing import ServerProcess
from headrace_server.workers.placement import CAN_PIN
from written_models import write_model

pytestmark = pytest.mark.e2e

PLACE = """
import os
import torch
from headrace_server import Model, TensorSpec

class Place(Model):
    inputs = [TensorSpec("x", "INT64", [1])]
    outputs = [
        TensorSpec("pid", "INT64", [1]),
        TensorSpec("threads", "INT64", [1]),
        TensorSpec("cores", "INT64", [64]),
    ]

    def forward(self, x):
        rows = x.shape[0]
        # Every thread of the process, those of numpy's and torch's libraries too.
        torch.mm(torch.ones(512, 512), torch.ones(512, 512))
        cores = set()
        for thread in os.listdir("/proc/self/task"):
            cores |= os.sched_getaffinity(int(thread))
        cores = sorted(cores)[:64]
        return (
            torch.full((rows, 1), os.getpid()),
            torch.full((rows, 1), torch.get_num_threads()),
            torch.tensor([cores + [-1] * (64 - len(cores))] * rows),
        )
"""
GROUPS = "instance_group [ { kind: KIND_CPU count: 2 } ]"


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    write_model(tmp_path, "place", PLACE, GROUPS)
    with ServerProcess(tmp_path, *request.param) as server:
        yield server


def places(server: ServerProcess) -> dict[int, tuple[int, set[int]]]:
    """Torch threads and cores of each of the two workers, by process."""
    seen: dict[int, tuple[int, set[int]]] = {}
    with Client(server.grpc_address) as client:
        while len(seen) < 2:
            results = client.infer("place", {"x": np.zeros((1, 1), dtype=np.int64)})
            cores = {int(core) for core in results["cores"][0] if core >= 0}
            seen[int(results["pid"][0, 0])] = int(results["threads"][0, 0]), cores
    return seen


@pytest.mark.skipif(not CAN_PIN, reason="only Linux pins")
@pytest.mark.parametrize("server", [("--pin-cores", "--cores", "2")], indirect=True)
def test_pinned_workers_run_on_cores_of_their_own(server: ServerProcess) -> None:
    (one, first), (two, second) = places(server).values()
    assert (one, two) == (1, 1)
    assert len(first) == len(second) == 1
    if len(os.sched_getaffinity(0)) > 1:
        assert first != second
    assert first | second <= os.sched_getaffinity(0)


@pytest.mark.skipif(not CAN_PIN, reason="needs to see who may run where")
@pytest.mark.parametrize("server", [("--cores", "2")], indirect=True)
def test_workers_share_the_cores_unpinned_by_default(server: ServerProcess) -> None:
    for threads, cores in places(server).values():
        assert threads == 1
        assert cores == os.sched_getaffinity(0)

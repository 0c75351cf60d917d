"""Workers of one exported program on the CPU map one copy of its weights, also after a loss."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace import Client
from headrace_server.testing import ServerProcess
from worker_processes import alive, workers_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="memory files with seals are Linux's"),
]

WIDTH = 600
TIMEOUT_S = 60.0


def shares(pid: int) -> bool:
    """Whether a worker has mapped the weights that its model's workers share."""
    try:
        return "headrace-weights" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def wait_for_two_that_share(front: int) -> list[int]:
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        found = [pid for pid in workers_of(front) if alive(pid) and shares(pid)]
        if len(found) == 2:
            return found
        time.sleep(0.05)
    raise AssertionError("expected two workers that share weights")


def test_workers_share_weights_and_so_does_one_that_takes_a_lost_one_s_place(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "wide" / "1"
    directory.mkdir(parents=True)
    network = torch.nn.Linear(WIDTH, WIDTH).eval()
    program = torch.export.export(
        network, (torch.zeros(2, WIDTH),), dynamic_shapes=({0: torch.export.Dim("batch", max=8)},)
    )
    torch.export.save(program, directory / "model.pt2")
    (directory.parent / "config.pbtxt").write_text("instance_group { kind: KIND_CPU count: 2 }\n")
    x = np.random.default_rng(0).random((1, WIDTH), dtype=np.float32)
    expected = network(torch.from_numpy(x)).detach().numpy()
    with ServerProcess(tmp_path) as server, Client(server.grpc_address) as client:
        name = client.model_metadata("wide").inputs[0].name
        lost, _ = wait_for_two_that_share(server.pid)
        os.kill(lost, signal.SIGKILL)
        while alive(lost):  # the kernel takes a moment to end it, and it still has its memory then
            time.sleep(0.01)
        assert lost not in wait_for_two_that_share(server.pid)
        for _ in range(8):
            (answer,) = client.infer("wide", {name: x}).values()
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)

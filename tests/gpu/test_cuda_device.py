"""Streams, events and pinned memory of a real GPU do what the simulated device does."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from headrace_server.models.gpu_options import GpuOptions
from headrace_server.workers.cuda_device import CudaDevice
from headrace_server.workers.device import Lane
from headrace_server.workers.slab import WritableSlab

pytestmark = pytest.mark.gpu

FLOATS = 1 << 20


@pytest.fixture
def device() -> CudaDevice:
    return CudaDevice("cuda:0", GpuOptions())


@pytest.fixture
def slab(device: CudaDevice) -> Iterator[WritableSlab]:
    slab = WritableSlab(device)
    slab.reserve(8 * FLOATS)
    yield slab
    slab.close()


def floats(slab: WritableSlab, offset: int) -> torch.Tensor:
    return torch.frombuffer(slab.view, dtype=torch.float32, count=FLOATS, offset=offset)


def test_a_slab_is_pinned_until_it_is_closed(device: CudaDevice, slab: WritableSlab) -> None:
    assert floats(slab, 0).is_pinned()


def test_memory_that_cannot_be_pinned_is_reported_once_and_breaks_nothing(
    device: CudaDevice, slab: WritableSlab, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "headrace.worker"):
        for _ in range(2):
            device.pin(slab.view)  # it is registered already
    assert len(caplog.records) == 1
    assert torch.ones(3, device="cuda").sum().item() == 3  # no launch inherits the error


def test_a_batch_goes_through_all_lanes_in_order(device: CudaDevice, slab: WritableSlab) -> None:
    host, answer = floats(slab, 0), floats(slab, 4 * FLOATS)
    host[:] = torch.arange(FLOATS)
    began = device.mark(Lane.UPLOAD)
    x = device.copy_in(host)
    ready = device.mark(Lane.UPLOAD)
    device.follow(Lane.COMPUTE, ready)
    y = device.compute(lambda: 2 * x + 1)
    device.follow(Lane.DOWNLOAD, device.mark(Lane.COMPUTE))
    device.copy_out(y, answer)
    written = device.mark(Lane.DOWNLOAD)
    written.wait()
    assert torch.equal(answer, 2 * host + 1)
    assert 0 < began.ns_until(ready) < began.ns_until(written)
    assert not device.is_broken()

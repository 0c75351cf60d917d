"""What is asked of CUDA, and when: on a made-up `torch.cuda` that writes it down."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from headrace_server.models.gpu_options import GpuOptions
from headrace_server.workers.cuda_device import CudaDevice
from headrace_server.workers.device import Lane

REFUSED = 801


class MadeUpCuda:
    """Streams are numbered in the order in which they are made; the first is torch's own."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.streams = 0
        self.current = 0
        self.status = 0
        self.registered: set[int] = set()

    def new_stream(self, device: torch.device) -> int:
        self.streams += 1
        return self.streams

    def current_stream(self, device: torch.device) -> int:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: int) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def new_event(self, *, enable_timing: bool, blocking: bool) -> SimpleNamespace:
        assert enable_timing
        number = len(self.asked)
        return SimpleNamespace(
            record=lambda stream: self.asked.append(("record", stream)),
            wait=lambda stream: self.asked.append(("wait", stream)),
            synchronize=lambda: self.asked.append(("synchronize", blocking)),
            elapsed_time=lambda later: 0.25 * (later.number - number),
            number=number,
        )

    def register(self, address: int, nbytes: int, flags: int) -> int:
        if not self.status:
            self.registered.add(address)
        return self.status

    def unregister(self, address: int) -> int:
        self.registered.remove(address)
        return 0


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> MadeUpCuda:
    made_up = MadeUpCuda()
    runtime = SimpleNamespace(
        cudaHostRegister=made_up.register, cudaHostUnregister=made_up.unregister
    )
    for name, value in {
        "set_device": lambda device: made_up.asked.append(("device", str(device))),
        "set_per_process_memory_fraction": lambda *given: made_up.asked.append(given),
        "Stream": made_up.new_stream,
        "current_stream": made_up.current_stream,
        "stream": made_up.stream,
        "Event": made_up.new_event,
        "cudart": lambda: runtime,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(CudaDevice, "_forget_error", lambda self: made_up.asked.append(("forget",)))
    return made_up


def test_a_worker_takes_no_more_memory_than_its_share(cuda: MadeUpCuda) -> None:
    CudaDevice("cuda:1", GpuOptions(memory_fraction=0.4))
    assert cuda.asked == [("device", "cuda:1"), (0.4, torch.device("cuda:1"))]
    cuda.asked.clear()
    CudaDevice("cuda:1", GpuOptions())
    assert cuda.asked == [("device", "cuda:1")]


@pytest.mark.parametrize("spin", [False, True])
def test_lanes_are_streams_and_marks_are_events(cuda: MadeUpCuda, spin: bool) -> None:
    device = CudaDevice("cuda:1", GpuOptions(spin=spin))
    cuda.asked.clear()
    upload = device.mark(Lane.UPLOAD)
    device.follow(Lane.COMPUTE, upload)
    download = device.mark(Lane.DOWNLOAD)
    download.wait()
    assert cuda.asked == [
        ("record", 1),
        ("wait", 0),
        ("record", 2),
        ("device", "cuda:1"),
        ("synchronize", not spin),
    ]
    assert upload.ns_until(download) == 500_000  # CUDA counts in milliseconds


def test_computation_is_on_the_stream_that_torch_uses_anyway(cuda: MadeUpCuda) -> None:
    device = CudaDevice("cuda:0", GpuOptions())
    assert device.compute(lambda: cuda.current) == 0


def test_answers_are_copied_on_a_stream_of_their_own(cuda: MadeUpCuda) -> None:
    device = CudaDevice("cuda:0", GpuOptions())
    used: list[tuple[int, bool]] = []
    host = SimpleNamespace(
        copy_=lambda value, non_blocking: used.append((cuda.current, non_blocking))
    )
    device.copy_out(torch.zeros(1), host)  # type: ignore[arg-type]
    arriving = SimpleNamespace(
        to=lambda device, non_blocking: used.append((cuda.current, non_blocking))
    )
    device.copy_in(arriving)  # type: ignore[arg-type]
    assert used == [(2, True), (1, True)]
    assert cuda.current == 0


def test_memory_is_registered_once_and_given_back(cuda: MadeUpCuda) -> None:
    device = CudaDevice("cuda:0", GpuOptions())
    memory = memoryview(bytearray(64))
    device.pin(memory)
    assert len(cuda.registered) == 1
    device.unpin(memory)
    assert not cuda.registered
    device.unpin(memory)  # what is not registered is left alone


def test_a_refusal_is_reported_once_and_its_error_leaves_nobody_else_to_fail(
    cuda: MadeUpCuda, caplog: pytest.LogCaptureFixture
) -> None:
    device = CudaDevice("cuda:0", GpuOptions())
    cuda.status = REFUSED
    cuda.asked.clear()
    memory = memoryview(bytearray(64))
    with caplog.at_level(logging.WARNING, "headrace.worker"):
        device.pin(memory)
        device.pin(memory)
    assert cuda.asked == [("forget",), ("forget",)]
    assert [record.message for record in caplog.records] == [
        "CUDA refuses to pin 64 bytes of shared memory (error 801): "
        "copies to and from the GPU do not overlap its work"
    ]
    device.unpin(memory)

"""A CUDA GPU as a pipeline sees it: three streams, events, and pages registered with the driver.

Workers only: imports torch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from headrace_server.models.gpu_options import GpuOptions
from headrace_server.workers.device import Lane, Mark

T = TypeVar("T")

PORTABLE = 1
"""`cudaHostRegisterPortable`, which torch gives where it registers memory itself."""

log = logging.getLogger("headrace.worker")


class CudaDevice:
    """Computes on the stream that is current in this thread, which is torch's own: models, warm-up
    and graphs need not know of it. Copies go on two more streams.

    A tensor that was copied in is allocated for the stream of uploads and read on that of
    computation. torch does not know of that, so whoever uses this keeps the tensor until a mark
    behind its last use was waited for.

    Args:
        device: "cuda:0", say; it becomes the thread's current one.
        options: how much memory torch may take there, and how to wait. Waiting with a core that
            does nothing else ends some 10 to 50 µs earlier.
    """

    def __init__(self, device: str, options: GpuOptions) -> None:
        self._device = torch.device(device)
        torch.cuda.set_device(self._device)
        if options.memory_fraction < 1:
            torch.cuda.set_per_process_memory_fraction(options.memory_fraction, self._device)
        cuda: Any = torch.cuda  # whose constructors have no types
        self._streams = {
            Lane.UPLOAD: cuda.Stream(self._device),
            Lane.COMPUTE: cuda.current_stream(self._device),
            Lane.DOWNLOAD: cuda.Stream(self._device),
        }
        self._new_event = partial(cuda.Event, enable_timing=True, blocking=not options.spin)
        self._runtime: Any = cuda.cudart()
        self._pinned: set[int] = set()
        self._refused = False

    def copy_in(self, host: torch.Tensor) -> torch.Tensor:
        """See `Device.copy_in`."""
        with torch.cuda.stream(self._streams[Lane.UPLOAD]):
            return host.to(self._device, non_blocking=True)

    def compute(self, call: Callable[[], T]) -> T:
        """See `Device.compute`."""
        # By name: a model, or what was tried when it was loaded, may have made another one current.
        with torch.cuda.stream(self._streams[Lane.COMPUTE]):
            return call()

    def copy_out(self, value: torch.Tensor, host: torch.Tensor) -> None:
        """See `Device.copy_out`."""
        with torch.cuda.stream(self._streams[Lane.DOWNLOAD]):
            host.copy_(value, non_blocking=True)

    def mark(self, lane: Lane) -> Mark:
        """See `Device.mark`."""
        event = self._new_event()
        event.record(self._streams[lane])
        return _EventMark(event, self._device)

    def follow(self, lane: Lane, mark: Mark) -> None:
        """See `Device.follow`."""
        assert isinstance(mark, _EventMark)
        mark.event.wait(self._streams[lane])

    def pin(self, memory: memoryview) -> None:
        """See `Device.pin`."""
        address = _address(memory)
        status = int(self._runtime.cudaHostRegister(address, memory.nbytes, PORTABLE))
        if status == 0:
            self._pinned.add(address)
            return
        self._forget_error()
        if not self._refused:
            self._refused = True
            log.warning(
                "CUDA refuses to pin %d bytes of shared memory (error %d): "
                "copies to and from the GPU do not overlap its work",
                memory.nbytes,
                status,
            )

    def unpin(self, memory: memoryview) -> None:
        """See `Device.unpin`."""
        address = _address(memory)
        if address in self._pinned:
            self._pinned.remove(address)
            if int(self._runtime.cudaHostUnregister(address)) != 0:
                self._forget_error()

    def is_broken(self) -> bool:
        """See `Device.is_broken`."""
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            return True
        return False

    def _forget_error(self) -> None:
        """Have the error that a call has left behind reported to nobody. The runtime keeps it for
        the next launch of a kernel in this thread, which torch would take for failed
        (`C10_CUDA_KERNEL_LAUNCH_CHECK`), and torch offers no `cudaGetLastError`."""
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self._device)


class _EventMark:
    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self.event = event
        self._device = device

    def wait(self) -> None:
        # The current device is a thread's own, and the first one by default: asking for times there
        # could open a context on a GPU that is somebody else's.
        torch.cuda.set_device(self._device)
        self.event.synchronize()

    def ns_until(self, later: Mark) -> int:
        assert isinstance(later, _EventMark)
        ms: float = self.event.elapsed_time(later.event)
        return round(ms * 1e6)


def _address(memory: memoryview) -> int:
    address: int = np.frombuffer(memory, np.uint8).ctypes.data
    return address

"""What a pipeline asks of a device that works beside the host: lanes, marks and pinned memory.

`CudaDevice` answers it with streams, events and registered memory; tests put a simulated device in
its place, which does what is queued as late as the rules allow.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Lane(Enum):
    """What is queued on one lane happens in order; between lanes only marks make an order."""

    UPLOAD = "upload"
    COMPUTE = "compute"
    DOWNLOAD = "download"


class Mark(Protocol):
    """A moment on a lane: everything queued there before it is done."""

    def wait(self) -> None:
        """Block this thread, and no other, until then. Raises whatever went wrong meanwhile."""
        ...

    def ns_until(self, later: Mark) -> int:
        """Nanoseconds from this mark to a later one; both were waited for."""
        ...


class Device(Protocol):
    """Queues work and returns at once. Used from one thread, but for waiting on marks."""

    def copy_in(self, host: torch.Tensor) -> torch.Tensor:
        """Copy to the device, on the lane UPLOAD. The host's memory must not change meanwhile."""
        ...

    def compute(self, call: Callable[[], T]) -> T:
        """Do this, with everything it asks of the device queued on the lane COMPUTE."""
        ...

    def copy_out(self, value: torch.Tensor, host: torch.Tensor) -> None:
        """Copy to the host, on the lane DOWNLOAD, into a contiguous tensor of this dtype and
        shape."""
        ...

    def mark(self, lane: Lane) -> Mark:
        """A mark behind everything that is queued on this lane."""
        ...

    def follow(self, lane: Lane, mark: Mark) -> None:
        """Let what is queued on this lane from now on begin after the mark."""
        ...

    def pin(self, memory: memoryview) -> None:
        """Lock pages into memory, so that they are copied without the CPU's help. Where that is
        refused, copies are slower and right all the same."""
        ...

    def unpin(self, memory: memoryview) -> None:
        """Undo `pin`; nothing that uses the memory is queued any more."""
        ...

    def is_broken(self) -> bool:
        """Whether nothing will run on it again in this process, as after an illegal access; waits
        until all that is queued is done."""
        ...

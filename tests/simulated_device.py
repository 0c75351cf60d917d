"""A device that does what is queued as late as the rules allow, in an order drawn at random.

Its memory is the host's, but nothing is there before it is due: whoever reads too early, writes too
early or lets go too early gets garbage, or an AssertionError that says so.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from threading import RLock
from typing import TypeVar

import torch

from headrace_server.workers.device import Lane, Mark

T = TypeVar("T")

GARBAGE = 99
DURATIONS_NS = {Lane.UPLOAD: 20, Lane.COMPUTE: 1_000, Lane.DOWNLOAD: 7}


class DeviceTensor(torch.Tensor):
    """What pretends not to lie in the host's memory; what is computed from it pretends too."""

    is_cpu = False  # type: ignore[assignment]


@dataclass(slots=True, eq=False)
class SimulatedMark:
    device: SimulatedDevice
    at_ns: int | None = None

    def wait(self) -> None:
        self.device.run_until(self)

    def ns_until(self, later: Mark) -> int:
        assert isinstance(later, SimulatedMark)
        assert self.at_ns is not None, "asked for the time of a mark that was not waited for"
        assert later.at_ns is not None, "asked for the time of a mark that was not waited for"
        return later.at_ns - self.at_ns


@dataclass(slots=True, eq=False)
class _Step:
    """Queued: `due` is its condition, `address` the host's memory that it uses."""

    run: Callable[[], None]
    due: Callable[[], bool] = lambda: True
    address: int = 0


class SimulatedDevice:
    """See `Device`. `dry` is true while a call is made only for the shapes of its answers."""

    def __init__(self, random: Random | None = None) -> None:
        self.random = random or Random(0)
        self.dry = False
        self.broken: Exception | None = None
        self.pinned: set[int] = set()
        self._lanes: dict[Lane, deque[_Step]] = {lane: deque() for lane in Lane}
        self._clocks_ns = dict.fromkeys(Lane, 0)
        self._lock = RLock()

    # -- what `Device` asks for -------------------------------------------------------------

    def copy_in(self, host: torch.Tensor) -> torch.Tensor:
        copied = torch.full_like(host, GARBAGE).as_subclass(DeviceTensor)
        alive = weakref.ref(copied)

        def run() -> None:
            target = alive()
            assert target is not None, "a tensor was freed before its upload"
            target.copy_(host)

        self._queue(Lane.UPLOAD, run, host.data_ptr())
        return copied

    def compute(self, call: Callable[[], T]) -> T:
        with self._lock:
            self.dry = True
            try:
                answer = call()
            finally:
                self.dry = False

        @torch.inference_mode()
        def run() -> None:
            for name, value in call().items():  # type: ignore[attr-defined]
                answer[name].copy_(value)  # type: ignore[index]

        self._queue(Lane.COMPUTE, run)
        return answer

    def copy_out(self, value: torch.Tensor, host: torch.Tensor) -> None:
        alive = weakref.ref(value)

        def run() -> None:
            source = alive()
            assert source is not None, "a tensor was freed before its download"
            host.copy_(source)

        self._queue(Lane.DOWNLOAD, run, host.data_ptr())

    def mark(self, lane: Lane) -> Mark:
        mark = SimulatedMark(self)

        def run() -> None:
            mark.at_ns = self._clocks_ns[lane]

        with self._lock:
            self._lanes[lane].append(_Step(run))
        return mark

    def follow(self, lane: Lane, mark: Mark) -> None:
        assert isinstance(mark, SimulatedMark)

        def run() -> None:
            assert mark.at_ns is not None
            self._clocks_ns[lane] = max(self._clocks_ns[lane], mark.at_ns)

        with self._lock:
            self._lanes[lane].append(_Step(run, lambda: mark.at_ns is not None))

    def pin(self, memory: memoryview) -> None:
        self.pinned.add(id(memory))

    def unpin(self, memory: memoryview) -> None:
        self.pinned.remove(id(memory))

    def is_broken(self) -> bool:
        self.run_all()
        return self.broken is not None

    # -- what tests ask for -----------------------------------------------------------------

    def run_until(self, mark: SimulatedMark) -> None:
        with self._lock:
            while mark.at_ns is None:
                self._step(list(Lane))
        if self.broken is not None:
            raise self.broken

    def run_all(self) -> None:
        with self._lock:
            while any(self._lanes.values()):
                self._step(list(Lane))

    def run_lane(self, lane: Lane) -> int:
        """As much of one lane as is due; returns how much is left there."""
        with self._lock:
            while self._lanes[lane] and self._lanes[lane][0].due():
                self._lanes[lane].popleft().run()
            return len(self._lanes[lane])

    def uses(self, memory: memoryview) -> bool:
        """Whether something is queued that reads or writes this memory."""
        first = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
        with self._lock:
            steps = [step for lane in self._lanes.values() for step in lane]
        return any(first <= step.address < first + memory.nbytes for step in steps)

    def _queue(self, lane: Lane, work: Callable[[], None], address: int = 0) -> None:
        def run() -> None:
            work()
            self._clocks_ns[lane] += DURATIONS_NS[lane]

        with self._lock:
            self._lanes[lane].append(_Step(run, address=address))
            # A real device is at work meanwhile.
            for _ in range(self.random.randrange(3)):
                self._step(self.random.sample(list(Lane), 1), must=False)

    def _step(self, lanes: list[Lane], *, must: bool = True) -> None:
        with self._lock:
            due = [lane for lane in lanes if self._lanes[lane] and self._lanes[lane][0].due()]
            assert due or not must, "everything waits for something else"
            if due:
                self._lanes[self.random.choice(due)].popleft().run()

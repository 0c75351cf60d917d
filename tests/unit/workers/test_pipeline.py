"""Batches in stages on a simulated device: what may overlap does, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.models.loading import LoadedModel
from headrace_server.models.program import Inputs, Parameters
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers import frames
from headrace_server.workers.device import Lane
from headrace_server.workers.pipeline import PipelinedPath
from headrace_server.workers.runner import BatchRunner
from headrace_server.workers.slab import ReadableSlab, WritableSlab
from simulated_device import DURATIONS_NS, GARBAGE, SimulatedDevice

SLABS = 2
BYTES = 1 << 10
WAIT_S = 10.0
BAD, HUNGRY = -1.0, -2.0
SPEC = ModelSpec(
    "model",
    1,
    "python",
    8,
    (TensorSpec("x", "FP32", (4,)), TensorSpec("keep", "BOOL", (1,))),
    (TensorSpec("y", "FP32", (4,)), TensorSpec("kept", "BOOL", (1,))),
)


class Doubling:
    """y = 2x + 1. Raises, as far as the host can tell, on batches that `refuses` says."""

    spec = SPEC
    example_shapes: Mapping[str, Sequence[int]] = {}
    overwrites_outputs = False

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.refuses: Exception | None = None

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        if self.device.dry and self.refuses is not None:
            raise self.refuses
        x, keep = inputs["x"], inputs["keep"]
        assert isinstance(x, torch.Tensor)
        if self.device.dry:
            return torch.full_like(x, GARBAGE), keep.clone()  # type: ignore[union-attr]
        return 2 * x + 1, keep

    def close(self) -> None:
        pass


class Reusing(Doubling):
    """Answers from memory that it writes to again in the next call."""

    overwrites_outputs = True

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__(device)
        self.y: torch.Tensor | None = None

    def call(self, inputs: Inputs, parameters: Parameters | None) -> object:
        x, keep = inputs["x"], inputs["keep"]
        assert isinstance(x, torch.Tensor)
        if self.y is None:
            self.y = torch.zeros(8, 4).as_subclass(type(x))
        y = self.y[: len(x)]
        if not self.device.dry:
            y.copy_(2 * x + 1)
        return y, keep


class Front:
    """Puts batches into free slabs, as the front does, and checks every answer when it comes."""

    def __init__(self, program: Doubling) -> None:
        self.program = program
        self.device = program.device
        self.inputs = [memoryview(bytearray(BYTES)) for _ in range(SLABS)]
        self.outputs = [memoryview(bytearray(BYTES)) for _ in range(SLABS)]
        self.answers: list[frames.FromWorker] = []
        self.expected: dict[int, np.ndarray] = {}
        self.wrong: list[str] = []
        self.broken: SimpleQueue[BaseException] = SimpleQueue()
        self.free: SimpleQueue[int] = SimpleQueue()
        for index in range(SLABS):
            self.free.put(index)
        self.slab_of: dict[int, int] = {}
        self.path = PipelinedPath(
            BatchRunner(LoadedModel(program, "cpu")), self.device, self.answered, self.broken.put
        )

    def send(self, batch_id: int, rows: int, refuses: Exception | None = None) -> None:
        index = self.free.get(timeout=WAIT_S)
        self.slab_of[batch_id] = index
        x = np.random.default_rng(batch_id).random((rows, 4), dtype=np.float32)
        keep = np.arange(rows, dtype=np.uint8) % 3  # any byte but 0 is true
        self.expected[batch_id] = x
        memory = self.inputs[index]
        memory[: x.nbytes] = x.tobytes()
        memory[512 : 512 + rows] = keep.tobytes()
        places = (
            frames.TensorPlace(0, 0, x.nbytes, (rows, 4)),
            frames.TensorPlace(1, 512, rows, (rows, 1)),
        )
        self.program.refuses = refuses
        message = frames.RunBatch(batch_id, index, places)
        self.path.submit(message, memory, lambda nbytes: self.outputs[index])

    def answered(self, message: frames.FromWorker) -> None:
        """Called on the pipeline's thread; from now on the slab is the front's again."""
        assert isinstance(message, frames.BatchDone | frames.BatchError)
        index = self.slab_of.pop(message.batch_id)
        memory = self.inputs[index], self.outputs[index]
        if any(map(self.device.uses, memory)):
            self.wrong.append(f"batch {message.batch_id} was answered with its slab in use")
        if isinstance(message, frames.BatchDone):
            y, kept = message.tensors
            x = self.expected[message.batch_id]
            got = np.frombuffer(self.outputs[index], np.float32, x.size, y.offset)
            if not np.array_equal(got.reshape(x.shape), 2 * x + 1):
                self.wrong.append(f"batch {message.batch_id} got {got}, expected {2 * x + 1}")
            flags = bytes(self.outputs[index][kept.offset : kept.offset + len(x)])
            if flags != bytes(int(row % 3 != 0) for row in range(len(x))):
                self.wrong.append(f"batch {message.batch_id} got the flags {flags!r}")
        for view in memory:
            view[:] = bytes([GARBAGE]) * len(view)
        self.answers.append(message)
        self.free.put(index)

    def close(self) -> None:
        self.path.close()
        assert not self.wrong, self.wrong


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice()


@pytest.fixture
def front(device: SimulatedDevice) -> Iterator[Front]:
    front = Front(Doubling(device))
    yield front
    front.close()


OUTCOMES = st.sampled_from(["ok", "ok", "ok", "raises", "no memory"])


@given(
    st.lists(st.tuples(st.integers(1, 8), OUTCOMES), max_size=12),
    st.integers(0, 1 << 30),
    st.booleans(),
)
def test_every_batch_gets_its_own_answer_in_order_whatever_the_device_does_first(
    batches: list[tuple[int, str]], seed: int, reuses: bool
) -> None:
    errors = {"raises": ValueError("bad"), "no memory": torch.OutOfMemoryError("full"), "ok": None}
    device = SimulatedDevice(Random(seed))
    front = Front(Reusing(device) if reuses else Doubling(device))
    for number, (rows, outcome) in enumerate(batches):
        front.send(number, rows, None if reuses else errors[outcome])
    front.close()
    assert [answer.batch_id for answer in front.answers] == [*range(len(batches))]  # type: ignore[union-attr]
    for (_, outcome), answer in zip(batches, front.answers, strict=True):
        if reuses or outcome == "ok":
            assert isinstance(answer, frames.BatchDone)
        else:
            assert isinstance(answer, frames.BatchError)
            assert answer.out_of_memory == (outcome == "no memory")


class Unmoved(Random):
    """A device that does nothing unless it is made to."""

    def randrange(self, *arguments: int) -> int:  # type: ignore[override]
        return 0


class Held(SimulatedDevice):
    """A device on which nothing is ever reached while somebody waits, until it is let go."""

    def __init__(self) -> None:
        super().__init__(Unmoved(0))
        self.gate: SimpleQueue[None] = SimpleQueue()

    def run_until(self, mark: object) -> None:
        self.gate.get(timeout=WAIT_S)
        self.gate.put(None)
        super().run_until(mark)  # type: ignore[arg-type]


def test_the_next_batch_is_copied_in_while_one_computes() -> None:
    device = Held()
    front = Front(Doubling(device))
    front.send(0, 2)
    front.send(1, 2)  # returns although nothing of the first batch is done
    assert device.run_lane(Lane.UPLOAD) == 0, "an upload waits for a computation"
    assert not any(map(device.uses, front.inputs))
    assert device.run_lane(Lane.DOWNLOAD) > 0, "a download came before its computation"
    assert not front.answers
    device.gate.put(None)
    front.close()
    assert len(front.answers) == 2


def test_a_model_that_makes_new_tensors_need_not_wait_for_the_last_download() -> None:
    device = Held()
    front = Front(Doubling(device))
    front.send(0, 2)
    front.send(1, 2)
    device.run_lane(Lane.UPLOAD)
    assert device.run_lane(Lane.COMPUTE) == 0
    device.gate.put(None)
    front.close()


def test_a_model_that_may_write_to_its_last_answer_waits_until_that_is_copied() -> None:
    device = Held()
    front = Front(Reusing(device))
    front.send(0, 2)
    front.send(1, 2)
    device.run_lane(Lane.UPLOAD)
    assert device.run_lane(Lane.COMPUTE) > 0
    device.run_lane(Lane.DOWNLOAD)
    assert device.run_lane(Lane.COMPUTE) == 0
    device.gate.put(None)
    front.close()


def test_a_batch_is_timed_by_the_device_without_the_wait_for_the_one_before() -> None:
    device = Held()
    front = Front(Doubling(device))
    front.send(0, 1)
    front.send(1, 8)
    device.gate.put(None)
    front.close()
    for answer in front.answers:
        assert isinstance(answer, frames.BatchDone)
        assert answer.input_ns == 2 * DURATIONS_NS[Lane.UPLOAD]  # two inputs
        assert answer.infer_ns == DURATIONS_NS[Lane.COMPUTE]
        assert answer.output_ns == 2 * DURATIONS_NS[Lane.DOWNLOAD]


def test_a_failure_on_the_host_is_no_end_of_the_device(front: Front) -> None:
    front.send(0, 1, ValueError("bad"))
    front.send(1, 1)
    front.path.close()
    assert front.broken.empty()
    failed, done = front.answers
    assert isinstance(failed, frames.BatchError)
    assert failed.detail == "ValueError: bad"
    assert isinstance(done, frames.BatchDone)


def test_a_device_that_breaks_while_a_batch_is_waited_for_blames_no_batch(front: Front) -> None:
    front.device.broken = RuntimeError("an illegal memory access was encountered")
    front.send(0, 1)
    assert front.broken.get(timeout=WAIT_S) is front.device.broken
    assert not front.answers


def test_a_device_that_breaks_while_a_batch_is_queued_blames_no_batch() -> None:
    front = Front(Doubling(Held()))
    front.device.broken = RuntimeError("an illegal memory access was encountered")
    error = RuntimeError("device-side assert triggered")
    front.send(0, 1, error)
    assert front.broken.get(timeout=WAIT_S) is error
    front.close()
    assert not front.answers


def test_slabs_are_pinned_as_long_as_they_are_mapped(device: SimulatedDevice) -> None:
    written = WritableSlab(device)
    descriptor = written.reserve(100)
    assert descriptor is not None
    read = ReadableSlab(descriptor, written.nbytes, device)
    assert device.pinned == {id(written.view), id(read.view)}
    read.close()
    larger = written.reserve(1 << 20)
    assert larger is not None
    again = ReadableSlab(larger, written.nbytes, device)
    assert device.pinned == {id(written.view), id(again.view)}
    again.close()
    written.close()
    assert not device.pinned

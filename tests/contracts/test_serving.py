"""What a transport may expect of who answers calls, in its own process or behind a link."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asking import infer, submit
from doubles import PuppetExecutor, RecordingObserver
from engine_stage import call_of, spec_of
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Answer
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.observer import Observer, ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.serving import Serving
from headrace_server.fronts import frames
from headrace_server.fronts.exchange import Exchange
from headrace_server.fronts.link import Link
from headrace_server.fronts.registry import Registry
from headrace_server.fronts.remote import RemoteEngine
from headrace_server.fronts.segment import Segment
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.transport.status import public_text

ROW = 1_024
"""Bytes: enough to lie in shared memory."""

SPEC = spec_of(max_batch_size=1, x=TensorSpec("x", "UINT8", [-1]), y=TensorSpec("y", "UINT8", [-1]))
PREPARED = ModelSpec(
    "model",
    1,
    "test",
    1,
    (TensorSpec("x", "UINT8", [-1]),),
    (TensorSpec("y", "UINT8", [-1]),),
    prepared=(TensorSpec("z", "UINT8", [-1]),),
)


class Invalid(Observer):
    def __init__(self) -> None:
        self.counted: list[tuple[str, str]] = []

    def call_invalid(self, model: str, reason: Reason) -> None:
        self.counted.append((model, reason.value))


class House:
    """An engine whose batches the test completes, and whom calls are handed to."""

    def __init__(self) -> None:
        self.told, self.invalid = RecordingObserver(), Invalid()
        self.engine = Engine(ObserverGroup(self.told, self.invalid))
        self.clock = LoopClock()
        self.serving: Serving = self.engine

    async def tell(self) -> None:
        """Whatever changed is known to whom calls are handed."""

    async def close(self) -> None:
        await self.engine.stop()

    def left(self) -> int:
        """Calls and tensors that nobody needs any more and that are still kept."""
        return 0

    def make(
        self,
        version: int = 1,
        spec: ModelSpec = SPEC,
        preparing: PuppetExecutor | None = None,
        **options: Any,
    ) -> tuple[Deployment, PuppetExecutor]:
        executor = PuppetExecutor(spec, **options)

        def preparation(rules: SchedulingRules, observer: Observer) -> Deployment:
            assert preparing is not None
            alone = SchedulingRules(BatchingSettings(0), 100, 1 << 30)
            return Deployment("model", version, preparing, lambda _: alone, self.clock, observer)

        deployment = Deployment(
            "model",
            version,
            executor,
            lambda spec: SchedulingRules(
                BatchingSettings(spec.max_batch_size, static=True), 4, 1 << 30
            ),
            self.clock,
            self.engine.observer,
            preparation,
        )
        return deployment, executor

    async def served(self, **options: Any) -> tuple[Deployment, PuppetExecutor]:
        deployment, executor = self.make(**options)
        self.engine.add(deployment)
        await deployment.load()
        await self.tell()
        return deployment, executor

    def submit(self, *rows: bytes, **options: Any) -> tuple[Any, asyncio.Future[Answer]]:
        return submit(self.serving.find("model"), call_of(*rows, **options))


class FrontedHouse(House):
    """The same behind a link, with segments of so many bytes."""

    def __init__(self, nbytes: int = 1 << 20) -> None:
        super().__init__()
        requests, answers = memoryview(bytearray(nbytes)), memoryview(bytearray(nbytes))
        self.registry = Registry(self.engine)
        self.requests, self.answers = Segment(requests), Segment(answers)
        self.remote = RemoteEngine(self.requests, answers)
        self.exchange = Exchange(
            self.engine, self.registry.deployment, requests, self.answers, self.clock
        )
        self.seen = 0
        self.serving = self.remote

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.here = Link(
            frames.read_from_front, self._from_front, self._has_seen, self.exchange.close
        )
        self.there = Link(frames.read_to_front, self._to_front, lambda _: None, lambda: None)
        for link, end in zip((self.here, self.there), socket.socketpair(), strict=True):
            await loop.create_connection(lambda link=link: link, sock=end)
        self.exchange.attach(self.here)
        self.remote.attach(self.there)
        await self.tell()

    async def tell(self) -> None:
        bundle = self.here.next_bundle
        self.here.send(self.registry.table())
        await until(lambda: self.seen >= bundle)

    async def close(self) -> None:
        self.there.close()
        self.here.close()
        await super().close()

    def left(self) -> int:
        return (
            self.remote.pending
            + self.exchange.running
            + self.requests.blocks
            # The last answers stay until something is said after them.
            + (self.answers.blocks if self.seen == self.here.next_bundle - 1 else 0)
        )

    def _has_seen(self, bundle: int) -> None:
        self.seen = bundle
        self.exchange.seen(bundle)

    def _from_front(self, message: frames.FromFront) -> None:
        match message:
            case frames.Submit():
                self.exchange.submit(message)
            case frames.Cancel():
                self.exchange.cancel(message)
            case frames.Invalid():
                self.exchange.count(message)

    def _to_front(self, message: frames.ToFront) -> None:
        match message:
            case frames.Answered():
                self.remote.answered(message)
            case frames.Refused():
                self.remote.refused(message)
            case frames.Table():
                self.remote.update(message)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


@pytest.fixture(params=["local", "behind a front", "behind a front with little memory"])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    if request.param == "local":
        house = House()
    else:
        house = FrontedHouse(1 << (11 if "little" in request.param else 20))
        await house.open()
    yield house
    await house.tell()
    await until(lambda: house.left() == 0)
    await house.close()


def row(value: int, nbytes: int = ROW) -> bytes:
    return bytes([value]) * nbytes


async def test_each_call_gets_its_own_rows_and_how_its_batch_went(house: House) -> None:
    _, workers = await house.served()
    futures = [house.submit(row(value))[1] for value in range(3)]
    await until(lambda: len(workers.batches) == 2)
    workers.complete(0)
    await until(lambda: len(workers.batches) == 3)
    workers.complete(1)
    workers.complete(2)
    answers = await asyncio.gather(*futures)
    for value, answer in enumerate(answers):
        (output,) = answer.outputs
        assert (output.shape, output.data) == ((1, ROW), row(value))
        assert answer.timing.infer_ns == 20_000
        assert answer.queue_s >= 0
        assert answer.batch_rows == 1


async def test_large_tensors_and_small_ones_come_through(house: House) -> None:
    _, workers = await house.served(workers=1)
    for number, nbytes in enumerate((1, 511, 512, 5_000, 3 << 20)):
        call = asyncio.create_task(infer(house.serving.find("model"), call_of(row(7, nbytes))))
        await until(lambda number=number: len(workers.batches) == number + 1)
        workers.complete(number)
        (output,) = (await call).outputs
        assert output.data == row(7, nbytes)


async def test_an_answer_too_large_to_be_sent_fails_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MAX_ANSWER_BYTES", 100)
    _, workers = await house.served(workers=2)
    large, small = house.submit(row(1, 200))[1], house.submit(row(2, 10))[1]
    await until(lambda: len(workers.batches) == 2)
    workers.complete(0)
    workers.complete(1)
    assert (await small).outputs[0].data == row(2, 10)
    if isinstance(house, FrontedHouse):
        with pytest.raises(ServingError) as failed:
            await large
        assert failed.value.reason is Reason.INTERNAL
    else:
        assert (await large).outputs[0].data == row(1, 200)


async def test_prepared_requests_are_prepared_first(house: House) -> None:
    preparing = PuppetExecutor(PREPARED)
    _, workers = await house.served(spec=PREPARED, preparing=preparing)
    call = asyncio.create_task(infer(house.serving.find("model"), call_of(row(3))))
    await until(lambda: len(preparing.batches) == 1)
    preparing.complete(0)
    await until(lambda: len(workers.batches) == 1)
    workers.complete(0)
    assert (await call).outputs[0].data == row(3)
    taken_back = asyncio.create_task(infer(house.serving.find("model"), call_of(row(4))))
    await until(lambda: len(preparing.batches) == 2)
    taken_back.cancel()
    await until(lambda: any(word.startswith("cancelled") for word in house.told.told))
    preparing.complete(1)
    assert len(workers.batches) == 1


async def test_a_call_taken_back_leaves_the_queue_and_is_counted_once(house: House) -> None:
    deployment, workers = await house.served()
    kept = [house.submit(row(value))[1] for value in range(2)]
    await until(lambda: len(workers.batches) == 2)
    request, _ = house.submit(row(2))
    waiting = asyncio.create_task(infer(house.serving.find("model"), call_of(row(3))))
    await until(lambda: deployment.queued_requests == 2)
    house.serving.find("model").cancel(request)
    house.serving.find("model").cancel(request)
    waiting.cancel()
    await until(lambda: deployment.queued_requests == 0)
    workers.complete(0)
    workers.complete(1)
    assert [answer.outputs[0].data for answer in await asyncio.gather(*kept)] == [row(0), row(1)]
    assert sum(word.startswith("cancelled") for word in house.told.told) == 2
    house.serving.find("model").cancel(request)


async def test_refusals_and_failures_come_with_their_reason(house: House) -> None:
    deployment, workers = await house.served()
    running = [house.submit(row(value))[1] for value in range(2)]
    await until(lambda: len(workers.batches) == 2)
    queued = [house.submit(row(2))[1] for _ in range(4)]
    await until(lambda: deployment.queued_requests == 4)
    with pytest.raises(ServingError) as refused:
        await house.submit(row(3))[1]
    assert refused.value.reason is Reason.QUEUE_FULL
    assert refused.value.counted
    workers.fail(0)
    with pytest.raises(ServingError) as refused:
        await running[0]
    assert public_text(refused.value) == "model 'model' failed to run this request"
    for number in range(1, 6):
        await until(lambda number=number: number in workers.batches)
        workers.complete(number)
    await running[1]
    await asyncio.gather(*queued)


async def test_who_has_no_time_left_is_refused(house: House) -> None:
    _, workers = await house.served()
    for value in range(2):
        house.submit(row(value))
    await until(lambda: len(workers.batches) == 2)
    with pytest.raises(ServingError) as refused:
        await house.submit(row(3), remaining_s=0.0)[1]
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    workers.complete(0)
    workers.complete(1)


async def test_who_is_not_found_is_told_what_the_engine_would_tell(house: House) -> None:
    gate = asyncio.Event()

    async def told(model: str, version: str = "") -> str:
        await house.tell()
        with pytest.raises(ServingError) as refused:
            house.serving.find(model, version)
        with pytest.raises(ServingError) as here:
            house.engine.find(model, version)
        assert public_text(refused.value) == public_text(here.value)
        assert house.serving.knows(model) == house.engine.knows(model)
        return refused.value.reason.value

    assert await told("model") == "unknown_model"
    first, _ = house.make(gate=gate)
    house.engine.announce(first)
    loading = asyncio.create_task(first.load())
    assert await told("model") == "model_unavailable"
    gate.set()
    await loading
    house.engine.switch("model", [first])
    assert await told("model", "2") == "unknown_version"
    assert await told("model", "one") == "unknown_version"
    assert await told("other") == "unknown_model"
    house.engine.add_broken("other", "", "no file")
    assert await told("other") == "model_unavailable"
    house.engine.switch("model", [])
    await until(lambda: not house.engine.knows("model"))
    assert await told("model") == "model_unavailable"
    assert await told("model", "1") == "model_unavailable"
    house.engine.stopping = True
    assert await told("model") == "stopping"


async def test_the_newest_ready_version_answers_and_a_named_one_may(house: House) -> None:
    await house.served(version=1)
    _, newest = await house.served(version=2)
    assert house.serving.find("model").spec == SPEC
    named = house.serving.find("model", "1")
    assert named is house.serving.find("model", "1")
    assert named is not house.serving.find("model")
    _, future = house.submit(row(1))
    await until(lambda: len(newest.batches) == 1)
    newest.complete(0)
    await future


async def test_who_was_told_too_late_gets_the_reason_of_now(house: House) -> None:
    deployment, _ = await house.served()
    served = house.serving.find("model")
    draining = asyncio.create_task(deployment.drain(None))
    await draining
    with pytest.raises(ServingError) as refused:
        await infer(served, call_of(row(1)))
    assert refused.value.reason in (Reason.MODEL_UNAVAILABLE, Reason.STOPPING)


async def test_calls_that_never_became_requests_are_counted_in_the_engine(house: House) -> None:
    await house.served()
    house.serving.observer.call_invalid("model", Reason.WRONG_SHAPE)
    house.serving.observer.call_invalid("", Reason.UNKNOWN_MODEL)
    await until(lambda: len(house.invalid.counted) == 2)
    assert house.invalid.counted == [("model", "wrong_shape"), ("", "unknown_model")]


async def test_a_front_that_vanishes_takes_its_requests_back_and_no_others() -> None:
    house = FrontedHouse()
    await house.open()
    deployment, workers = await house.served()
    running = house.submit(row(0))[1]
    await until(lambda: len(workers.batches) == 1)
    own = submit(deployment, call_of(row(1)))[1]
    await until(lambda: len(workers.batches) == 2)
    for value in range(2):
        house.submit(row(value))
    await until(lambda: deployment.queued_requests == 2)
    house.there.close()
    await until(lambda: deployment.queued_requests == 0)
    assert house.exchange.running == 0
    workers.complete(0)
    workers.complete(1)
    assert (await own).outputs[0].data == row(1)
    assert not running.done()
    assert sum(word.startswith("cancelled") for word in house.told.told) == 3
    await house.close()

"""The engine finds the deployment that answers, or says why none does."""

from __future__ import annotations

import asyncio

import pytest

from asking import submit
from doubles import FakeClock, PuppetExecutor, RecordingObserver
from engine_stage import call_of, spec_of
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine, IndexRow
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.batching import BatchingSettings


class House:
    """An engine with deployments by model and version."""

    def __init__(self) -> None:
        self.engine = Engine(RecordingObserver())
        self.clock = FakeClock()
        self.executors: dict[tuple[str, int], PuppetExecutor] = {}

    def add(self, model: str, version: int, *, load_error: str = "") -> Deployment:
        executor = PuppetExecutor(spec_of(), load_error=load_error)
        self.executors[model, version] = executor
        deployment = Deployment(
            model,
            version,
            executor,
            lambda spec: SchedulingRules(BatchingSettings(spec.max_batch_size), 1, 1 << 20),
            self.clock,
            self.engine.observer,
        )
        self.engine.add(deployment)
        return deployment

    async def load(self, model: str, version: int, *, load_error: str = "") -> Deployment:
        deployment = self.add(model, version, load_error=load_error)
        await deployment.load()
        return deployment

    def reason(self, model: str, version: str = "") -> Reason:
        with pytest.raises(ServingError) as caught:
            self.engine.find(model, version)
        return caught.value.reason


async def test_the_newest_version_that_is_ready_answers() -> None:
    house = House()
    await house.load("m", 2)
    ready = await house.load("m", 10)
    await house.load("m", 11, load_error="broken file")
    house.add("m", 12)
    assert house.engine.find("m") is ready


async def test_a_version_can_be_asked_for() -> None:
    house = House()
    first, second = await house.load("m", 1), await house.load("m", 2)
    assert house.engine.find("m", "1") is first
    assert house.engine.find("m", "2") is second


async def test_what_cannot_answer_says_why() -> None:
    house = House()
    await house.load("m", 1, load_error="broken file")
    house.engine.add_broken("empty", "", "no version directory")
    assert house.reason("nobody") is Reason.UNKNOWN_MODEL
    assert house.reason("empty") is Reason.MODEL_UNAVAILABLE
    assert house.reason("m") is Reason.MODEL_UNAVAILABLE
    assert house.reason("m", "1") is Reason.MODEL_UNAVAILABLE
    assert house.reason("m", "9") is Reason.UNKNOWN_VERSION
    assert house.reason("m", "latest") is Reason.UNKNOWN_VERSION
    assert house.reason("m", "-1") is Reason.UNKNOWN_VERSION


async def test_a_version_is_served_once() -> None:
    house = House()
    house.add("m", 1)
    with pytest.raises(ValueError, match="m version 1 is already served"):
        house.add("m", 1)


async def test_the_index_names_every_version_with_its_state() -> None:
    house = House()
    await house.load("b", 2)
    await house.load("a", 1, load_error="broken file")
    house.add("b", 3)
    house.engine.add_broken("c", "", "no version directory")
    assert house.engine.index() == [
        IndexRow("a", "1", "UNAVAILABLE", "broken file"),
        IndexRow("b", "2", "READY", ""),
        IndexRow("b", "3", "LOADING", ""),
        IndexRow("c", "", "UNAVAILABLE", "no version directory"),
    ]
    assert house.engine.knows("b")
    assert not house.engine.knows("c")


async def test_it_is_ready_when_everything_that_should_serve_can() -> None:
    house = House()
    await house.load("a", 1, load_error="broken file")
    assert not house.engine.ready(), "there are models, and none of them serves"
    loading = house.add("b", 1)
    assert not house.engine.ready()
    await loading.load()
    assert house.engine.ready()
    house.executors["b", 1].lose(0)
    assert not house.engine.ready()
    house.executors["b", 1].restore(0)
    assert house.engine.ready()


async def test_a_full_queue_does_not_block_other_models() -> None:
    house = House()
    crowded, other = await house.load("crowded", 1), await house.load("other", 1)
    house.executors["crowded", 1].lose(0)
    submit(crowded, call_of(b"aa"))
    refused = submit(crowded, call_of(b"bb"))[1]
    with pytest.raises(ServingError):
        await refused
    answer = submit(other, call_of(b"cc"))[1]
    house.clock.advance()
    house.executors["other", 1].complete(0)
    assert (await answer).outputs[0].data == b"cc"


async def test_a_drain_finishes_all_models_and_refuses_new_calls() -> None:
    house = House()
    deployment = await house.load("a", 1)
    await house.load("b", 1)
    answer = submit(deployment, call_of(b"aa"))[1]
    house.clock.advance()
    drain = asyncio.create_task(house.engine.drain(60.0))
    await asyncio.sleep(0)
    assert house.reason("a") is Reason.STOPPING
    assert not house.engine.ready()
    house.executors["a", 1].complete(0)
    assert await drain
    assert (await answer).outputs[0].data == b"aa"


async def test_stopping_ends_every_worker() -> None:
    house = House()
    await house.load("a", 1)
    await house.load("b", 1)
    await house.engine.stop()
    assert [executor.stopped for executor in house.executors.values()] == [1, 1]
    assert house.reason("a") is Reason.STOPPING

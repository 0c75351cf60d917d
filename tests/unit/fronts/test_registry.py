"""What fronts are told of deployments that come and go."""

from __future__ import annotations

import asyncio

import pytest

from asking import submit
from doubles import FakeClock, PuppetExecutor, RecordingObserver
from engine_stage import call_of, spec_of
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.fronts import frames
from headrace_server.fronts.link import Link
from headrace_server.fronts.registry import Registry
from headrace_server.fronts.remote import RemoteEngine
from headrace_server.fronts.segment import Segment
from headrace_server.models.batching import BatchingSettings


def make(engine: Engine, version: int) -> Deployment:
    return Deployment(
        "m",
        version,
        PuppetExecutor(spec_of()),
        lambda spec: SchedulingRules(BatchingSettings(spec.max_batch_size), 1, 1 << 20),
        FakeClock(),
        engine.observer,
    )


async def test_calls_take_what_stays_before_what_leaves_is_drained() -> None:
    engine = Engine(RecordingObserver())
    registry = Registry(engine)
    remote = RemoteEngine(Segment(memoryview(bytearray(1 << 12))), memoryview(b""))
    remote.attach(Link(frames.read_to_front, lambda _: None, lambda _: None, lambda: None))
    settled = asyncio.Event()

    async def settle() -> None:
        await settled.wait()

    engine.settled = settle
    newer, older = make(engine, 2), make(engine, 1)
    engine.add(newer)
    engine.announce(older)
    await newer.load()
    await older.load()
    remote.update(registry.table())
    found = remote.find("m")
    assert registry.deployment(found.number) is newer
    engine.switch("m", [older])
    remote.update(registry.table())
    assert registry.deployment(remote.find("m").number) is older
    with pytest.raises(ServingError, match="being unloaded") as refused:
        remote.find("m", "2")
    assert refused.value.reason is Reason.MODEL_UNAVAILABLE
    settled.set()
    await engine.stop()


async def test_what_leaves_takes_the_calls_that_are_on_their_way() -> None:
    engine = Engine(RecordingObserver())
    settled = asyncio.Event()

    async def settle() -> None:
        await settled.wait()

    engine.settled = settle
    leaving = make(engine, 1)
    engine.add(leaving)
    await leaving.load()
    engine.switch("m", [])
    assert Registry(engine).table().rows[0].state == "UNLOADING"
    assert leaving.state is DeploymentState.READY
    request, _ = submit(leaving, call_of(b"\0" * 4))
    leaving.cancel(request)
    settled.set()
    await engine.stop()

"""Fronts that cannot be started or do not respond: nobody waits, another one comes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from doubles import RecordingObserver
from fronted_stage import FrontedStage, settings_of
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.engine import Engine
from headrace_server.fronts import fleet, front_process
from headrace_server.fronts.front_process import FrontProcess
from headrace_server.fronts.registry import Registry
from headrace_server.fronts.shared_meter import SharedMeter
from headrace_server.workers.slab import WritableSlab
from stream_stage import request, until
from worker_processes import alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fronts need Linux")


@pytest.fixture
async def stage() -> AsyncIterator[FrontedStage]:
    stage = FrontedStage()
    await stage.start()
    yield stage
    await stage.stop()


def make() -> tuple[FrontProcess, Registry]:
    engine = Engine(RecordingObserver())
    registry = Registry(engine)
    return FrontProcess(engine, registry.deployment, LoopClock()), registry


def descriptors() -> list[str]:
    """What this process has open, by what it is."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


async def test_a_front_without_memory_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve, reserved = WritableSlab.reserve, []

    def exhausted(slab: WritableSlab, nbytes: int) -> int | None:
        if reserved:
            raise OSError(errno.ENOMEM, "no memory")
        reserved.append(slab)
        return reserve(slab, nbytes)

    before = descriptors()
    monkeypatch.setattr(WritableSlab, "reserve", exhausted)
    with pytest.raises(OSError, match="no memory"):
        make()
    reserved.pop().close()
    assert descriptors() == before


async def test_nobody_waits_for_a_front_that_could_not_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    before = descriptors()
    front, registry = make()
    monkeypatch.setattr(socket, "socketpair", exhausted)
    with pytest.raises(OSError, match="too many"):
        await front.spawn(settings_of(0, "127.0.0.1:0", "/nowhere"), registry.table, -1)
    assert front.lost.done()
    await front.told(front.tell(registry.table()))
    assert await front.reap() == 0
    assert descriptors() == before


async def test_a_front_that_does_not_start_in_time_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front_process, "START_TIMEOUT_S", 0.0)
    front, registry = make()
    rates = SharedMeter.create()
    problem = await front.spawn(settings_of(0, "127.0.0.1:0", "/nowhere"), registry.table, rates)
    assert problem == "it did not accept connections within 0 s"
    assert await front.reap() == -signal.SIGKILL
    assert front.lost.done()
    os.close(rates)


async def test_another_front_comes_whatever_the_trouble_was(
    stage: FrontedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles: list[Exception] = [ValueError("unforeseen"), OSError("no process")]
    gone = stage.fronts[0]
    spawn = FrontProcess.spawn

    async def troubled(front: FrontProcess, *given: Any) -> str:
        if troubles:
            raise troubles.pop(0)
        return await spawn(front, *given)

    monkeypatch.setattr(FrontProcess, "spawn", troubled)
    await stage.kill(gone)
    async with asyncio.timeout(60):
        while troubles or not all(front.listening for front in stage.fronts):
            await asyncio.sleep(0.01)


async def test_a_front_that_does_not_respond_is_replaced(
    stage: FrontedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SETTLE_TIMEOUT_S", 1.0)
    gone = stage.fronts[0]
    assert gone.pid is not None
    os.kill(gone.pid, signal.SIGSTOP)
    await stage.fleet.settle()
    await gone.lost
    await stage.serve_again(gone)
    await until(lambda: not alive(gone.pid or 0))
    held = [stub.ModelInfer(request(i), wait_for_ready=True) for i, stub in enumerate(stage.stubs)]
    await until(lambda: len(stage.workers.batches) > 0)
    for call in held:
        call.cancel()

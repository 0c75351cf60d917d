"""Worker processes on their own: born, ended and described alike, forked or from scratch."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from headrace_server.workers import nursery
from headrace_server.workers.nursery import NotBornError, Nursery
from headrace_server.workers.process import WorkerDiedError, WorkerProcess
from worker_processes import alive, children_of, command_of

SECONDS = 60.0

forking = pytest.mark.skipif(not nursery.CAN_FORK, reason="forks on Linux alone")


@pytest.fixture(params=[pytest.param(True, marks=forking), False], ids=["forked", "fresh"])
def forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(nursery, "CAN_FORK", request.param)
    return bool(request.param)


@pytest.fixture
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(SECONDS):
        yield


@pytest.fixture
def own() -> Iterator[Nursery]:
    """One that a test may kill; it has not started yet."""
    started = Nursery()
    yield started
    started.stop()


@pytest.mark.usefixtures("bounded", "forks")
async def test_who_is_told_to_stop_ends_by_itself() -> None:
    process = worker()
    await process.spawn()
    assert process.pid is not None
    assert children_of(os.getpid()).count(process.pid) == 1
    assert "worker_main" in command_of(process.pid)
    assert "model/1#0" in command_of(process.pid)
    await process.stop()
    assert await process.died == "exited with status 0"
    assert not exists(process.pid)


@pytest.mark.usefixtures("bounded", "forks")
async def test_a_signal_is_told_by_its_name_and_leaves_no_zombie() -> None:
    process = worker()
    await process.spawn()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSEGV)
    assert await process.died == "killed by SIGSEGV"
    assert not exists(process.pid)


@pytest.mark.usefixtures("bounded", "forks")
async def test_what_the_server_killed_itself_is_told_with_its_reason() -> None:
    process = worker()
    await process.spawn()
    process.give_up()
    assert await process.died == "ended by the server: it took too long"


@forking
@pytest.mark.usefixtures("bounded")
async def test_workers_outlive_their_nursery_and_the_next_one_has_another(
    own: Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nursery, "NURSERY", own)
    first, second = worker(), worker()
    await first.spawn()
    killed = own.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await until(lambda: not exists(killed))
    assert not first.lost.done()
    await second.spawn()
    assert own.pid != killed
    assert not first.lost.done()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert await first.died == "killed by SIGKILL", "though who forked it is long gone"
    await second.stop()
    await second.died
    assert [r.getMessage() for r in caplog.records if "nursery" in r.getMessage()] == [
        "the nursery killed by SIGKILL; the next worker starts another"
    ]


@forking
@pytest.mark.usefixtures("bounded")
async def test_a_nursery_that_ends_before_a_birth_costs_that_one_alone(
    own: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "NURSERY", own)
    own.start()
    assert own.pid is not None
    os.kill(own.pid, signal.SIGSTOP)  # what is asked now is not answered
    ask, asked = own._ask, asyncio.Event()

    def ask_and_tell(name: bytes, descriptors: list[int]) -> bool:
        asked.set()
        return ask(name, descriptors)

    monkeypatch.setattr(own, "_ask", ask_and_tell)
    spawning = asyncio.create_task(worker().spawn())
    await asked.wait()  # who asks one that has ended starts another
    os.kill(own.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="could not be forked"):
        await spawning
    process = worker()
    await process.spawn()
    await process.stop()


@forking
@pytest.mark.usefixtures("bounded")
async def test_many_kills_at_any_moment_of_births_leave_no_process(
    own: Nursery,
) -> None:
    before = set(children_of(os.getpid()))
    own.start()
    births = 0
    for moment in range(8):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await end(await own.fork(theirs, "warm"))  # it has imported everything
            births += 1
            birth = asyncio.create_task(own.fork(theirs, "model/1#0"))
            await asyncio.sleep(moment * 0.002)
            assert own.pid is not None
            killed = own.pid
            os.kill(killed, signal.SIGKILL)
            with suppress(NotBornError):
                await end(await birth)
            # To die takes a moment on a core, in which it may still be asked.
            await until(lambda killed=killed: not alive(killed))  # type: ignore[misc]
    assert births == 8
    own.stop()
    await until(lambda: set(children_of(os.getpid())) <= before)


@forking
@pytest.mark.usefixtures("bounded")
async def test_who_is_not_wanted_any_more_ends_once_born(own: Nursery) -> None:
    before = set(children_of(os.getpid()))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        birth = asyncio.create_task(own.fork(theirs, "model/1#0"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        birth.cancel()
        with pytest.raises(asyncio.CancelledError):
            await birth
        await end(await own.fork(theirs, "model/1#1"))  # after the other: one by one
    await until(lambda: set(children_of(os.getpid())) - before == {own.pid})


@forking
@pytest.mark.usefixtures("bounded")
async def test_more_may_be_asked_for_than_fits_into_the_socket(own: Nursery) -> None:
    own.start()
    assert own.pid is not None
    os.kill(own.pid, signal.SIGSTOP)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        births = [asyncio.create_task(own.fork(theirs, "n" * 250)) for _ in range(300)]
        await asyncio.sleep(0.1)
        os.kill(own.pid, signal.SIGKILL)
        ended = await asyncio.gather(*births[:10], return_exceptions=True)
        assert all(isinstance(error, NotBornError) for error in ended)
        for birth in births:
            birth.cancel()
        await asyncio.gather(*births, return_exceptions=True)
    own.stop()


def worker() -> WorkerProcess:
    return WorkerProcess(*[lambda *_: None] * 4, name="model/1#0")


async def end(child: nursery.Child) -> None:
    child.kill()
    assert await child.wait() == -signal.SIGKILL


def exists(pid: int) -> bool:
    """Also as a zombie."""
    return Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)

"""What is served follows the repository: beside what serves, all or nothing, nobody lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from asking import submit
from doubles import FakeClock, PuppetExecutor, RecordingObserver
from engine_stage import call_of, spec_of
from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.engine.model_control import SETTLE_S, ControlMode, ModelControl
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.repository import ModelEntry, ModelSource, scan

CORES = 8


class Estate:
    """A repository on disk whose models run on puppets.

    `made` lists the deployments in the order of their making; `load_errors` says with what the
    next ones of a version fail, and `gates` for what their loading waits.
    """

    def __init__(self, repository: Path, mode: ControlMode = "explicit") -> None:
        self.repository = repository
        self.clock = FakeClock()
        self.engine = Engine(RecordingObserver())
        self.made: list[Deployment] = []
        self.cores: list[int] = []
        self.workers: dict[Deployment, PuppetExecutor] = {}
        self.load_errors: dict[int, str] = {}
        self.gates: dict[int, asyncio.Event] = {}
        self.control = ModelControl(repository, mode, self.engine, self.deploy, CORES)

    def deploy(self, entry: ModelEntry, source: ModelSource, cores: int) -> Deployment:
        workers = PuppetExecutor(
            spec_of(),
            load_error=self.load_errors.get(source.version, ""),
            gate=self.gates.get(source.version),
        )
        deployment = Deployment(
            source.name,
            source.version,
            workers,
            lambda spec: SchedulingRules(BatchingSettings(spec.max_batch_size), 100, 1 << 20),
            self.clock,
            self.engine.observer,
        )
        self.made.append(deployment)
        self.cores.append(cores)
        self.workers[deployment] = workers
        return deployment

    def write(self, version: int = 1, text: str = "", *, model: str = "m") -> None:
        directory = self.repository / model / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.py").write_text(text)

    def configure(self, text: str, *, model: str = "m") -> None:
        (self.repository / model / "config.pbtxt").write_text(text)

    async def start(self) -> None:
        await self.control.start(scan(self.repository))

    def index(self) -> list[tuple[str, str]]:
        return [(row.version, row.state) for row in self.engine.index() if row.model == "m"]


@pytest.fixture
async def estate(tmp_path: Path) -> Estate:
    estate = Estate(tmp_path)
    estate.write()
    await estate.start()
    return estate


async def refusal(call: Awaitable[None]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        await call
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_a_load_comes_up_beside_what_serves_and_then_takes_its_place(estate: Estate) -> None:
    (old,) = estate.made
    estate.gates[1] = asyncio.Event()
    _, admitted = submit(old, call_of(b"aa"))
    estate.clock.advance()
    load = asyncio.create_task(estate.control.load("m"))
    await until(lambda: len(estate.made) == 2)
    assert estate.engine.find("m") is old
    assert estate.engine.ready()
    assert estate.index() == [("1", "READY")]
    estate.gates[1].set()
    await load
    assert estate.engine.find("m") is estate.made[1]
    await asyncio.sleep(0)
    assert estate.workers[old].stopped == 0, "it still has something to answer"
    estate.workers[old].complete(0)
    assert (await admitted).outputs[0].data == b"aa"
    await until(lambda: estate.workers[old].stopped)
    assert estate.index() == [("1", "READY")]


async def test_a_load_that_fails_changes_nothing(estate: Estate) -> None:
    (old,) = estate.made
    estate.load_errors[1] = "no such layer"
    error = await refusal(estate.control.load("m"))
    assert (error.reason, error.details["why"]) == (
        Reason.LOAD_FAILED,
        "version 1: no such layer",
    )
    assert estate.engine.find("m") is old
    assert estate.workers[estate.made[1]].stopped == 1
    assert estate.index() == [("1", "READY")]


async def test_either_all_versions_load_or_none(estate: Estate) -> None:
    (old,) = estate.made
    estate.write(2)
    estate.write(3)
    estate.configure("version_policy { specific { versions: [ 2, 3 ] } }")
    estate.load_errors[3] = "no such layer"
    assert (await refusal(estate.control.load("m"))).reason is Reason.LOAD_FAILED
    assert estate.engine.find("m") is old
    estate.load_errors.clear()
    await estate.control.load("m")
    await until(lambda: estate.workers[old].stopped)
    assert estate.index() == [("1", "UNAVAILABLE"), ("2", "READY"), ("3", "READY")]
    assert estate.engine.find("m") is estate.made[-1]


async def test_a_model_that_never_loaded_says_why(tmp_path: Path) -> None:
    estate = Estate(tmp_path)
    estate.write()
    await estate.control.start([])
    assert [(row.model, row.state) for row in await estate.control.index()] == [("m", "")]
    assert estate.engine.ready()
    estate.load_errors[1] = "no such layer"
    await refusal(estate.control.load("m"))
    (row,) = await estate.control.index()
    assert (row.version, row.state, row.reason) == ("1", "UNAVAILABLE", "no such layer")
    (estate.repository / "m" / "config.pbtxt").write_text("max_batch_sise: 1")
    error = await refusal(estate.control.load("m"))
    assert "unknown field" in str(error.details["why"])
    assert not estate.engine.ready(), "there is a model, and it does not serve"


async def test_the_index_says_what_came_of_the_last_load(tmp_path: Path) -> None:
    estate = Estate(tmp_path)
    estate.write()
    estate.load_errors[1] = "no such layer"
    await estate.start()
    assert [row.reason for row in estate.engine.index()] == ["no such layer"]
    estate.load_errors[1] = "another fault"
    await refusal(estate.control.load("m"))
    assert [row.reason for row in estate.engine.index()] == ["another fault"]
    estate.load_errors.clear()
    await estate.control.load("m")
    assert estate.index() == [("1", "READY")]
    assert estate.engine.ready()


async def test_what_the_repository_does_not_hold_is_not_loaded(estate: Estate) -> None:
    (estate.repository / ".hidden" / "1").mkdir(parents=True)
    for name in ("nobody", "", ".", "..", ".hidden", "m/1", "../m"):
        error = await refusal(estate.control.load(name))
        assert error.reason is Reason.NOT_IN_REPOSITORY
    shutil.rmtree(estate.repository)
    assert (await refusal(estate.control.load("m"))).reason is Reason.NOT_IN_REPOSITORY
    assert [row.model for row in await estate.control.index()] == ["m"]


async def test_a_configuration_that_comes_along_counts_until_the_next_load(estate: Estate) -> None:
    await estate.control.load("m", ModelConfig(max_batch_size=3))
    config = estate.control.config_of(estate.made[-1])
    assert config is not None
    assert config.max_batch_size == 3
    await estate.control.load("m")
    assert estate.control.config_of(estate.made[-1]) is None


async def test_a_changed_instance_count_is_no_reload(estate: Estate) -> None:
    (deployment,) = estate.made
    workers = estate.workers[deployment]
    for count, ready in ((3, [0, 1, 2]), (1, [0])):
        estate.configure(f"instance_group {{ kind: KIND_CPU count: {count} }}")
        await estate.control.load("m")
        assert sorted(workers.held) == sorted(deployment.workers) == ready
        config = estate.control.config_of(deployment)
        assert config is not None
        assert config.instance_group[0].count == count
    assert workers.released == [1, 2]
    assert estate.made == [deployment]
    estate.configure("instance_group { kind: KIND_CPU count: 1 }\nmax_batch_size: 2")
    await estate.control.load("m")
    assert len(estate.made) == 2, "something else has changed too"


async def test_a_worker_too_many_answers_what_it_holds(estate: Estate) -> None:
    (deployment,) = estate.made
    workers = estate.workers[deployment]
    estate.configure("instance_group { kind: KIND_CPU count: 2 }")
    await estate.control.load("m")
    answers = []
    for n in (1, 2):
        answers.append(submit(deployment, call_of(bytes([n, n])))[1])
        estate.clock.advance()
    assert [len(held) for held in workers.held.values()] == [1, 1]
    estate.configure("instance_group { kind: KIND_CPU count: 1 }")
    await estate.control.load("m")
    assert workers.released == []
    workers.complete(0)
    workers.complete(1)
    assert [(await answer).outputs[0].data for answer in answers] == [b"\1\1", b"\2\2"]
    assert workers.released == [1]
    assert [*deployment.workers] == [0]


async def test_where_the_workers_cannot_stay_the_model_is_loaded_again(estate: Estate) -> None:
    (old,) = estate.made
    estate.workers[old].fixed = True
    estate.configure("instance_group { kind: KIND_CPU count: 2 }")
    await estate.control.load("m")
    assert estate.engine.find("m") is estate.made[1]


async def test_workers_that_cannot_be_started_change_nothing(estate: Estate) -> None:
    (old,) = estate.made
    estate.workers[old].load_error = "no memory"
    estate.configure("instance_group { kind: KIND_CPU count: 2 }")
    assert (await refusal(estate.control.load("m"))).details["why"] == "no memory"
    assert estate.engine.find("m") is old


async def test_an_unloaded_model_finishes_and_refuses(estate: Estate) -> None:
    (old,) = estate.made
    _, admitted = submit(old, call_of(b"aa"))
    estate.clock.advance()
    await estate.control.unload("m")
    await asyncio.sleep(0)
    assert estate.index() == [("1", "UNLOADING")]
    with pytest.raises(ServingError) as refused:
        estate.engine.find("m")
    assert refused.value.reason is Reason.MODEL_UNAVAILABLE
    assert estate.engine.ready()
    estate.workers[old].complete(0)
    assert (await admitted).outputs[0].data == b"aa"
    await until(lambda: estate.index() == [("1", "UNAVAILABLE")])
    assert not estate.engine.knows("m")
    with pytest.raises(ServingError) as refused:
        estate.engine.find("m")
    assert refused.value.reason is Reason.MODEL_UNAVAILABLE
    await estate.control.unload("m")
    assert (await refusal(estate.control.unload("nobody"))).reason is Reason.UNKNOWN_MODEL
    await estate.control.load("m")
    assert estate.engine.find("m") is estate.made[1]


async def test_a_model_is_not_ready_once_its_unloading_was_answered(estate: Estate) -> None:
    """Also while calls that found it before are still on their way from fronts."""
    arrived = asyncio.Event()

    async def settled() -> None:
        await arrived.wait()

    estate.engine.settled = settled
    assert estate.engine.model_ready("m")
    await estate.control.unload("m")
    await asyncio.sleep(0)
    assert not estate.engine.model_ready("m")
    assert not estate.engine.model_ready("m", "1")
    arrived.set()
    await until(lambda: estate.index() == [("1", "UNAVAILABLE")])
    await estate.control.load("m")
    assert estate.engine.model_ready("m")


async def test_a_model_that_still_ends_can_be_loaded_again(estate: Estate) -> None:
    (old,) = estate.made
    submit(old, call_of(b"aa"))
    estate.clock.advance()
    await estate.control.unload("m")
    await estate.control.load("m")
    assert estate.index() == [("1", "READY")]
    await estate.control.unload("m")
    await until(lambda: not estate.engine.knows("m"))
    estate.workers[old].complete(0)
    await until(lambda: estate.workers[old].stopped)
    assert estate.index() == [("1", "UNAVAILABLE")]


async def test_operations_on_one_model_come_one_after_the_other(estate: Estate) -> None:
    gate = estate.gates[1] = asyncio.Event()
    load = asyncio.create_task(estate.control.load("m"))
    await until(lambda: len(estate.made) == 2)
    unload = asyncio.create_task(estate.control.unload("m"))
    await asyncio.sleep(0)
    assert estate.index() == [("1", "READY")]
    gate.set()
    await load
    await unload
    await until(lambda: estate.index() == [("1", "UNAVAILABLE")])


async def test_a_load_whose_caller_goes_away_changes_nothing(estate: Estate) -> None:
    (old,) = estate.made
    estate.gates[1] = asyncio.Event()
    load = asyncio.create_task(estate.control.load("m"))
    await until(lambda: len(estate.made) == 2)
    load.cancel()
    with suppress(asyncio.CancelledError):
        await load
    await until(lambda: estate.workers[estate.made[1]].stopped)
    assert estate.engine.find("m") is old
    estate.gates.clear()
    await estate.control.load("m")


async def test_a_server_that_stops_ends_its_loads(estate: Estate) -> None:
    estate.gates[1] = asyncio.Event()
    load = asyncio.create_task(estate.control.load("m"))
    await until(lambda: len(estate.made) == 2)
    await estate.control.stop()
    assert (await refusal(load)).reason is Reason.STOPPING
    assert (await refusal(estate.control.unload("m"))).reason is Reason.STOPPING
    assert estate.workers[estate.made[1]].stopped == 1
    await estate.engine.stop()


async def test_what_still_ends_is_part_of_the_end(estate: Estate) -> None:
    (old,) = estate.made
    _, admitted = submit(old, call_of(b"aa"))
    estate.clock.advance()
    await estate.control.load("m")
    await asyncio.sleep(0)
    drain = asyncio.create_task(estate.engine.drain(60.0))
    await asyncio.sleep(0)
    assert not drain.done()
    estate.workers[old].complete(0)
    assert await drain
    assert (await admitted).outputs[0].data == b"aa"
    await estate.engine.stop()
    assert all(workers.stopped for workers in estate.workers.values())


async def test_cores_are_shared_by_what_is_served(tmp_path: Path) -> None:
    estate = Estate(tmp_path)
    estate.write(model="a")
    estate.write(model="b")
    await estate.start()
    estate.write(model="c")
    estate.write(model="d")
    await estate.control.load("c")
    await estate.control.load("d")
    await estate.control.load("a")
    assert estate.cores == [4, 4, 2, 2, 2]


# -- poll -------------------------------------------------------------------------------------


class Watch:
    """A control that follows the repository whenever the test says so."""

    def __init__(self, estate: Estate) -> None:
        self.waits: list[float] = []
        self._go = asyncio.Semaphore(0)
        self._task = asyncio.create_task(estate.control.watch(self._wait, 15.0))

    async def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self._go.acquire()

    async def go_on(self) -> float:
        """Let it wait no longer; returns how long it then waits next."""
        before = len(self.waits)
        self._go.release()
        await until(lambda: len(self.waits) > before)
        return self.waits[-1]

    async def look(self) -> None:
        """Let it look once, and act."""
        await until(lambda: self.waits)
        if await self.go_on() == SETTLE_S:
            assert await self.go_on() == 15.0

    async def end(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def watch(estate: Estate) -> Watch:
    return Watch(estate)


async def test_nothing_happens_where_nothing_changed(estate: Estate, watch: Watch) -> None:
    await watch.look()
    await watch.look()
    assert watch.waits == [15.0, 15.0, 15.0]
    assert len(estate.made) == 1
    await watch.end()


async def test_what_comes_changes_and_goes_is_followed(estate: Estate, watch: Watch) -> None:
    (old,) = estate.made
    estate.write(model="n")
    await watch.look()
    assert estate.engine.find("n") is estate.made[1]
    estate.write(2)
    await watch.look()
    assert estate.engine.find("m").version == 2
    await until(lambda: estate.workers[old].stopped)
    estate.write(2, "changed")
    await watch.look()
    assert estate.engine.find("m") is estate.made[3]
    shutil.rmtree(estate.repository / "n")
    await watch.look()
    await until(lambda: not estate.engine.knows("n"))
    assert estate.engine.find("m") is estate.made[3]
    await watch.end()


async def test_versions_that_did_not_change_stay(estate: Estate, watch: Watch) -> None:
    estate.configure("version_policy { all {} }")
    await watch.look()
    first = estate.engine.find("m", "1")
    estate.write(2)
    await watch.look()
    assert estate.engine.find("m", "1") is first
    assert estate.engine.find("m").version == 2
    await watch.end()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are Unicode")
async def test_a_name_that_is_no_utf_8_is_shown_and_refused(estate: Estate, watch: Watch) -> None:
    estate.write(model=os.fsdecode(b"caf\xe9"))
    estate.write(model="n")
    assert [row.model for row in await estate.control.index()] == ["caf\\xe9", "m", "n"]
    error = await refusal(estate.control.load("caf\\xe9"))
    why = "expected a name in UTF-8, got 'caf\\xe9'"
    assert (error.reason, error.details["why"]) == (Reason.LOAD_FAILED, why)
    await watch.look()
    assert estate.engine.find("n") is estate.made[1]
    (row,) = [row for row in estate.engine.index() if row.model == "caf\\xe9"]
    assert (row.state, row.reason) == ("UNAVAILABLE", why)
    await watch.end()


async def test_what_still_changes_is_left_alone(estate: Estate, watch: Watch) -> None:
    await until(lambda: watch.waits)
    estate.write(1, "half of")
    assert await watch.go_on() == SETTLE_S
    estate.write(1, "half of it, and the rest")
    assert await watch.go_on() == 15.0
    assert len(estate.made) == 1
    await watch.look()
    assert len(estate.made) == 2
    await watch.end()


async def test_a_change_that_cannot_be_loaded_is_tried_once(estate: Estate, watch: Watch) -> None:
    (old,) = estate.made
    estate.load_errors[1] = "no such layer"
    estate.write(1, "broken")
    await watch.look()
    await watch.look()
    assert len(estate.made) == 2
    assert estate.engine.find("m") is old
    estate.load_errors.clear()
    estate.write(1, "mended")
    await watch.look()
    assert estate.engine.find("m") is estate.made[2]
    await watch.end()


async def test_a_repository_that_cannot_be_read_changes_nothing(
    estate: Estate, watch: Watch
) -> None:
    elsewhere = estate.repository.with_name("elsewhere")
    estate.repository.rename(elsewhere)
    await watch.look()
    assert estate.engine.find("m") is estate.made[0]
    elsewhere.rename(estate.repository)
    await watch.look()
    assert len(estate.made) == 1
    await watch.end()

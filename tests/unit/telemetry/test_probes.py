"""What probes over HTTP are told, above all when the event loop does not answer."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest

from headrace_server.engine.engine import Engine
from headrace_server.engine.observer import Observer
from headrace_server.telemetry import probes as probing
from headrace_server.telemetry.probes import Probes

LIVE, READY = "/v2/health/live", "/v2/health/ready"


@pytest.fixture
def engine() -> Engine:
    return Engine(Observer())


async def test_a_server_without_models_is_ready_once_it_has_started(engine: Engine) -> None:
    probes = Probes(engine)
    probes.open()
    engine.starting = True
    assert await asyncio.to_thread(probes.answer, LIVE) is HTTPStatus.OK
    assert await asyncio.to_thread(probes.answer, READY) is HTTPStatus.SERVICE_UNAVAILABLE
    engine.starting = False
    assert await asyncio.to_thread(probes.answer, READY) is HTTPStatus.OK
    unknown = "/v2/models/nobody/versions/1/ready"
    assert await asyncio.to_thread(probes.answer, unknown) is HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.parametrize("path", ["/metrics", "/"])
async def test_the_path_of_the_metrics_is_none_of_its_business(engine: Engine, path: str) -> None:
    assert Probes(engine).answer(path) is None


@pytest.mark.parametrize(
    "path", ["/v2/health", "/v2/health/redy", READY + "/", "/v2/models//ready", "/metrics/", "/v2"]
)
async def test_a_mistyped_path_is_not_found(engine: Engine, path: str) -> None:
    assert Probes(engine).answer(path) is HTTPStatus.NOT_FOUND


async def test_a_loop_that_is_stuck_is_not_live(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "PATIENCE_S", 0.01)
    probes = Probes(engine)
    probes.open()
    # Called on the loop, which therefore cannot look.
    assert probes.answer(LIVE) is HTTPStatus.SERVICE_UNAVAILABLE


def test_a_loop_that_has_ended_is_not_live(engine: Engine) -> None:
    probes = Probes(engine)

    async def open_and_end() -> None:
        probes.open()

    asyncio.run(open_and_end())
    assert probes.answer(LIVE) is HTTPStatus.SERVICE_UNAVAILABLE

"""The process that serves HTTP, without an engine behind it: its start, its end, and its port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_server.gateway import gateway_process
from headrace_server.gateway.gateway_process import Gateway, GatewayError
from headrace_server.gateway.settings import Settings
from worker_processes import alive, children_of, command_of


def gateway(**changed: Any) -> Gateway:
    def settings(asks: str, listeners: tuple[int, ...]) -> Settings:
        return Settings(
            **{
                "asks": asks,
                "listeners": listeners,
                "max_body_bytes": 1_000,
                "max_connections": 10,
                "compressed": False,
                "tls_cert": "",
                "tls_key": "",
                "tls_client_ca": "",
                "tokens": "",
                "grace_s": 0.1,
                "log_format": "text",
                "log_level": "info",
                **changed,
            }
        )

    return Gateway(settings)


def gateways() -> list[int]:
    """The processes of this test's gateways that live."""
    children = [pid for pid in children_of(os.getpid()) if alive(pid)]
    return [pid for pid in children if "gateway_main" in command_of(pid)]


def taken_by_nobody(port: int) -> bool:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    return True


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For temporary files; its path is short, as that of a socket must be."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="gateway-") as path:
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield Path(path)


async def test_what_nobody_answers_behind_it_is_unavailable(directory: Path) -> None:
    served = gateway()
    port, asks = served.prepare("127.0.0.1", 0, None)
    assert asks.parent.parent == directory
    await served.start()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/v2/models/m") as answer,
    ):
        assert answer.status == 503
        assert "error" in await answer.json()
    await served.stop()
    assert not [*directory.iterdir()]
    assert taken_by_nobody(port)


async def test_one_that_cannot_start_says_so_and_leaves_nothing(directory: Path) -> None:
    served = gateway(tls_cert="none.crt", tls_key="none.key")
    served.prepare("127.0.0.1", 0, None)
    with pytest.raises(GatewayError, match="cannot serve HTTP: it ended while it started"):
        await served.start()
    await served.stop()
    assert not [*directory.iterdir()]


async def test_one_that_is_killed_on_purpose_is_not_started_again(directory: Path) -> None:
    served = gateway()
    port, _ = served.prepare("127.0.0.1", 0, directory / "engine")
    await served.start()
    served.kill()
    await asyncio.sleep(0.5)
    assert not gateways()
    await served.stop()
    assert taken_by_nobody(port)


async def test_one_that_hangs_is_replaced(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway_process, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(gateway_process, "HANG_S", 3.0)
    served = gateway()
    port, _ = served.prepare("127.0.0.1", 0, directory / "engine")
    await served.start()
    (hung,) = gateways()
    await asyncio.sleep(0.5)
    assert gateways() == [hung]  # it responds
    os.kill(hung, signal.SIGSTOP)
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/v9") as answer,
    ):
        assert answer.status == 404
    assert f"gateway process {hung} does not respond" in caplog.text
    assert hung not in gateways()
    await served.stop()
    assert not gateways()

"""The process that serves HTTP, without an engine behind it: its start, its end, and its port."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_server.gateway.gateway_process import Gateway, GatewayError
from headrace_server.gateway.settings import Settings


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
                "grace_s": 0.1,
                "log_format": "text",
                "log_level": "info",
                **changed,
            }
        )

    return Gateway(settings)


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
    pid = served.pid
    served.kill()
    await served.stop()
    assert served.pid == pid
    assert taken_by_nobody(port)

"""Clients that people have: grpcio, synchronous and asynchronous, curl, h2load and nghttp."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from wire.echo_process import EchoProcess
from wire.echo_server import TRAILERS, Limits, pattern
from wire.peer import FAIL, HOLD, LARGE, STREAM, UNARY, Peer, message, messages_of

TEN_MB = 10_000_000
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")


@pytest.fixture(scope="module")
def server() -> Iterator[EchoProcess]:
    with EchoProcess(Limits(message_bytes=16 << 20, streams=1_000)) as started:
        yield started


@pytest.fixture
def channel(server: EchoProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.address, UNLIMITED) as opened:
        yield opened


def tool(name: str) -> str:
    """The path of a program; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_grpcio_unary_and_streams(channel: Any) -> None:
    unary, stream = channel.unary_unary(UNARY), channel.stream_stream(STREAM)
    for size in (0, 1, 100, 100_000):
        assert unary(pattern(size), timeout=60) == pattern(size)
    bodies = [b"%d" % number * number for number in range(200)]
    assert [*stream(iter(bodies), timeout=60)] == bodies


def test_grpcio_messages_of_ten_megabytes(channel: Any) -> None:
    body = pattern(TEN_MB)
    assert channel.unary_unary(UNARY)(body, timeout=60) == body
    assert channel.unary_unary(LARGE)(b"%d" % TEN_MB, timeout=60) == body
    stream = channel.stream_stream(STREAM)
    assert [*stream(iter([body, b"", body]), timeout=60)] == [body, b"", body]


def test_grpcio_a_message_above_the_limit(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(UNARY)(bytes((16 << 20) + 1), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert channel.unary_unary(UNARY)(b"after", timeout=60) == b"after"


def test_grpcio_status_and_metadata(channel: Any) -> None:
    metadata = (("fail-code", "9"), ("x-bin", b"\0\xff"))
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(FAIL)("es wäre schön".encode(), timeout=60, metadata=metadata)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.value.details() == "es wäre schön"
    assert {*TRAILERS} <= {(key, value) for key, value in failed.value.trailing_metadata()}


def test_grpcio_deadline_and_cancellation(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as late:
        channel.unary_unary(HOLD)(b"late", timeout=0.1)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert channel.unary_unary("/test.Echo/Cancelled")(b"late", timeout=60) == b"late"
    call = channel.unary_unary(HOLD).future(b"cancelled")
    assert channel.unary_unary("/test.Echo/Begun")(b"cancelled", timeout=60)
    call.cancel()
    assert channel.unary_unary("/test.Echo/Cancelled")(b"cancelled", timeout=60)


def test_grpcio_gzip_is_read_or_unimplemented(channel: Any) -> None:
    call = channel.unary_unary(UNARY).future(
        pattern(100_000), timeout=60, compression=grpc.Compression.Gzip
    )
    if call.code() is not grpc.StatusCode.UNIMPLEMENTED:
        assert call.result() == pattern(100_000)


async def test_grpc_aio_many_calls_of_all_kinds_at_once(server: EchoProcess) -> None:
    async with grpc.aio.insecure_channel(server.address, UNLIMITED) as channel:
        unary: Any = channel.unary_unary(UNARY)
        stream: Any = channel.stream_stream(STREAM)

        async def one(number: int) -> None:
            body = b"%d" % number * (number * 37 % 5_000)
            assert await unary(body, timeout=60) == body

        async def several(number: int) -> None:
            bodies = [b"%d %d" % (number, index) for index in range(20)]
            assert [answer async for answer in stream(iter(bodies), timeout=60)] == bodies

        async def cancelled(number: int) -> None:
            call = stream(timeout=60)
            await call.write(b"%d" % number)
            assert await call.read() == b"%d" % number
            call.cancel()

        await asyncio.gather(
            *(one(n) for n in range(400)),
            *(several(n) for n in range(40)),
            *(cancelled(n) for n in range(40)),
        )
        assert await unary(b"after", timeout=60) == b"after"


def test_curl(server: EchoProcess, tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(message(b"from curl"))
    done = subprocess.run(
        [
            *(tool("curl"), "--silent", "--http2-prior-knowledge", "--max-time", "30"),
            *(part for header in GRPC_HEADERS for part in ("--header", header)),
            *("--dump-header", str(tmp_path / "headers")),
            *("--data-binary", f"@{tmp_path / 'request'}", f"http://{server.address}{UNARY}"),
        ],
        capture_output=True,
        check=True,
    )
    assert messages_of(done.stdout) == [b"from curl"]
    assert "grpc-status: 0" in (tmp_path / "headers").read_text()


@pytest.mark.parametrize("body", [b"small", pattern(100_000)], ids=["small", "large"])
def test_h2load(server: EchoProcess, tmp_path: Path, body: bytes) -> None:
    (tmp_path / "request").write_bytes(message(body))
    done = subprocess.run(
        [
            *(tool("h2load"), "-c", "4", "-m", "16", "-n", "400"),
            *("-d", str(tmp_path / "request")),
            *(part for header in GRPC_HEADERS for part in ("-H", header)),
            f"http://{server.address}{UNARY}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "400 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--header-table-size=0"], ["--window-bits=8"]])
def test_nghttp(server: EchoProcess, tmp_path: Path, flags: list[str]) -> None:
    """nghttp2 judges all that it is sent, such as the table's size, and says so."""
    (tmp_path / "request").write_bytes(message(b"from nghttp"))
    done = subprocess.run(
        [
            *(tool("nghttp"), "--verbose", "--no-push", *flags),
            *("--data", str(tmp_path / "request")),
            *(part for header in GRPC_HEADERS for part in ("-H", header)),
            f"http://{server.address}{UNARY}",
        ],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"grpc-status: 0" in done.stdout
    assert b"error" not in done.stdout.lower().replace(b"error_code=no_error", b"")
    with Peer(server.address) as peer:
        peer.echo()

"""HTTP in front of a real gRPC server whose batches the test completes: limits, and who goes."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket
from typing import Any

import aiohttp
import grpc
import pytest

from headrace_server.gateway import bodies, listening, service
from headrace_server.gateway.gateway_main import OPTIONS
from headrace_server.gateway.listening import Listening
from headrace_server.gateway.settings import Settings
from headrace_server.rpc.sockets import bind
from headrace_server.transport.tenants import Tenants, parse_tenants
from headrace_server.workers.executor import BatchOutput
from stream_stage import WORKERS, Stage, until

INFER = "/v2/models/model/infer"
LIMIT = 100_000


def request_of(*values: int, **parameters: Any) -> dict[str, Any]:
    """A request whose rows of two bytes repeat these values."""
    data = [value for value in values for _ in range(2)]
    tensor = {"name": "x", "datatype": "UINT8", "shape": [len(values), 2], "data": data}
    return {"inputs": [tensor], "parameters": parameters}


async def first_line(reader: asyncio.StreamReader) -> bytes:
    """What a connection says first; nothing if it ends without a word."""
    try:
        async with asyncio.timeout(10):
            return await reader.readline()
    except ConnectionError:
        return b""


async def until_served(caller: Caller) -> None:
    """Wait until there is room for one more connection."""
    async with asyncio.timeout(10):
        while True:
            with suppress(aiohttp.ClientError):
                async with caller.session.get(caller.url + "/v2"):
                    return
            await asyncio.sleep(0.02)


class Caller:
    """Connections to one gateway, and the stage behind it."""

    def __init__(self, stage: Stage, port: int, session: aiohttp.ClientSession) -> None:
        self.stage = stage
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.session = session

    async def infer(self, *values: int, **parameters: Any) -> Any:
        async with self.session.post(
            self.url + INFER, json=request_of(*values, **parameters)
        ) as answer:
            body = await answer.json()
            assert answer.status == 200, body
            return body["outputs"][0]["data"]

    async def answered(self, *values: int) -> None:
        """Have one request answered, from its start to its end."""
        count = len(self.stage.workers.batches)
        asking = asyncio.create_task(self.infer(*values))
        await self.stage.taken(count + 1)
        self.stage.workers.complete(count)
        assert await asking == [value for value in values for _ in range(2)]

    async def refused(self, body: Any, status: int, **headers: str) -> Any:
        async with self.session.post(self.url + INFER, data=body, headers=headers) as answer:
            told = await answer.json()
            assert answer.status == status, told
            assert answer.headers["Server"] == "headrace"
            assert answer.headers["Content-Type"] == "application/json"
            return told["error"]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(setting=...) as caller`."""

    @asynccontextmanager
    async def serving(
        tenants: Callable[[], Tenants] | None = None, **changed: Any
    ) -> AsyncIterator[Caller]:
        stage = Stage(gate=None if tenants is None else (tenants, time.monotonic))
        await stage.start()
        private = tmp_path / str(len([*tmp_path.iterdir()]))
        await stage.server.start_privately(private)
        (listener,), port = bind("127.0.0.1", 0)
        listener.listen()
        listener.setsockopt(SOL_SOCKET, SO_SNDBUF, 4_096)  # little is under way unread
        settings = Settings(
            **{
                "asks": str(private),
                "listeners": (listener.detach(),),
                "max_body_bytes": LIMIT,
                "max_connections": 100,
                "compressed": False,
                "tls_cert": "",
                "tls_key": "",
                "tls_client_ca": "",
                "tokens": "",
                "grace_s": 1.0,
                "log_format": "text",
                "log_level": "info",
                **changed,
            }
        )
        try:
            async with (
                grpc.aio.insecure_channel(f"unix:{settings.asks}", options=OPTIONS) as channel,
                Listening(settings, channel, tenants),
                aiohttp.ClientSession() as session,
            ):
                yield Caller(stage, port, session)
        finally:
            await stage.stop()

    return serving


async def test_a_request_is_answered_in_its_batch(serve: Serve) -> None:
    async with serve() as caller:
        await caller.answered(3)


async def test_who_hangs_up_leaves_the_queue(serve: Serve) -> None:
    async with serve() as caller:
        stage = caller.stage
        staying = [asyncio.create_task(caller.infer(value)) for value in range(2 * WORKERS)]
        await stage.taken(2 * WORKERS)
        leaving = asyncio.create_task(caller.infer(99))
        await until(lambda: stage.counted("headrace_queue_requests") == 1)
        leaving.cancel()
        await until(lambda: stage.cancelled() == 1)
        assert stage.counted("headrace_queue_requests") == 0
        for batches in stage.workers.held.values():
            while batches:
                stage.workers.complete(batches[0])
        for value, answer in enumerate(staying):
            assert await answer == [value, value]


async def test_bodies_beyond_the_limit_are_refused_however_they_come(serve: Serve) -> None:
    async with serve() as caller:
        told = f"expected a body of at most {LIMIT} bytes, got more"
        assert await caller.refused(bytes(LIMIT + 1), 413) == told

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(LIMIT // 1_000 + 1):
                yield bytes(1_000)

        assert await caller.refused(pieces(), 413) == told
        await caller.answered(1)


async def test_packed_bodies_are_taken_only_where_that_is_said(serve: Serve) -> None:
    packed = gzip.compress(json.dumps(request_of(7)).encode())
    async with serve() as caller:
        told = await caller.refused(packed, 415, **{"Content-Encoding": "gzip"})
        assert "--compression accept" in told
    async with serve(compressed=True) as caller:
        for name, body in (
            ("gzip", packed),
            ("deflate", zlib.compress(json.dumps(request_of(7)).encode())),
        ):
            count = len(caller.stage.workers.batches)
            asking = asyncio.create_task(
                caller.session.post(
                    caller.url + INFER,
                    data=body,
                    headers={"Content-Encoding": name, "Accept-Encoding": name},
                )
            )
            await caller.stage.taken(count + 1)
            caller.stage.workers.complete(count)
            async with await asking as answer:
                assert (answer.status, answer.headers["Content-Encoding"]) == (200, name)
                assert (await answer.json())["outputs"][0]["data"] == [7, 7]
        bomb = gzip.compress(bytes(100 * LIMIT))
        assert len(bomb) < LIMIT
        told = await caller.refused(bomb, 413, **{"Content-Encoding": "gzip"})
        assert told == f"expected a body of at most {LIMIT} bytes, got more"
        told = await caller.refused(b"nonsense", 400, **{"Content-Encoding": "gzip"})
        assert told.startswith("the body cannot be read")


async def test_bodies_that_are_under_way_share_one_room(serve: Serve) -> None:
    """Two of the largest may be: a third one is refused, and served once there is room again."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: {LIMIT}\r\n\r\n".encode()
    async with serve() as caller:
        writers = []
        for _ in range(2):
            _, writer = await caller.connect()
            writer.write(head + bytes(LIMIT - 10))
            await writer.drain()
            writers.append(writer)
        for _ in range(100):
            async with caller.session.post(caller.url + INFER, data=bytes(100)) as answer:
                told = await answer.json()
            if answer.status == 503:
                break
            assert answer.status == 400, told
            await asyncio.sleep(0.02)
        assert answer.headers["Retry-After"] == "1"
        assert f"the bodies of all calls have {2 * LIMIT - 20} of {2 * LIMIT}" in told["error"]
        for writer in writers:
            writer.transport.abort()
        for _ in range(100):
            async with caller.session.post(caller.url + INFER, data=bytes(100)) as answer:
                await answer.read()
            if answer.status == 400:
                break
            await asyncio.sleep(0.02)
        await caller.answered(1)


async def test_connections_beyond_the_limit_are_sent_away_however_many_come_at_once(
    serve: Serve,
) -> None:
    async with serve(max_connections=2) as caller:
        connected = await asyncio.gather(*(caller.connect() for _ in range(20)))
        for _, writer in connected:
            writer.write(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
        lines = await asyncio.gather(*(first_line(reader) for reader, _ in connected))
        assert sorted(lines) == [b""] * 18 + [b"HTTP/1.1 200 OK\r\n"] * 2
        for _, writer in connected:
            writer.close()
        await until_served(caller)


async def test_silent_connections_end_and_those_that_have_called_do_not(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "GREETING_S", 0.5)
    async with serve() as caller:
        served, calling = await caller.connect()
        call = b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n"
        calling.write(call)
        assert await first_line(served) == b"HTTP/1.1 200 OK\r\n"
        for said in (b"", f"POST {INFER} HTTP/1.1\r\nHost:".encode()):
            reader, writer = await caller.connect()
            writer.write(said)
            assert await first_line(reader) == b""
            writer.close()
        calling.write(call)
        assert b"HTTP/1.1 200 OK\r\n" in await served.readuntil(b"HTTP/1.1 200 OK\r\n")
        calling.close()


@pytest.mark.parametrize("every_s", [0.0, 0.02])
async def test_a_caller_who_sends_too_slowly_is_told_so(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, every_s: float
) -> None:
    """One who stops, and one who goes on with a byte now and then."""
    monkeypatch.setattr(bodies, "STALLED_S", 0.2)
    async with serve() as caller:
        reader, writer = await caller.connect()
        writer.write(f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n1".encode())
        answer = asyncio.ensure_future(reader.readline())
        while every_s and not answer.done():
            writer.write(b"1")
            await asyncio.sleep(every_s)
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize(("least", "whole"), [(1, True), (16_384, False)])
async def test_a_caller_who_takes_its_answer_too_slowly_is_dropped(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, least: int, whole: bool
) -> None:
    """Slowly is what the pace says: who keeps it gets all of the answer."""
    monkeypatch.setattr(bodies, "STALLED_S", 0.2)
    monkeypatch.setattr(bodies, "LEAST_BYTES_PER_S", least * 1_000)
    rows = 400_000
    tensor = {"name": "x", "datatype": "UINT8", "shape": [rows, 2]}
    tensor["parameters"] = {"binary_data_size": 2 * rows}
    parameters = {"binary_data_output": True}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    async with serve(max_body_bytes=1 << 20) as caller:
        connection = socket()
        connection.setsockopt(SOL_SOCKET, SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", caller.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=1)
        writer.write(
            f"POST {INFER} HTTP/1.1\r\nHost: h\r\nInference-Header-Content-Length: {len(head)}\r\n"
            f"Content-Length: {len(head) + 2 * rows}\r\n\r\n".encode()
        )
        writer.write(head + bytes(2 * rows))
        await caller.stage.taken(1)
        caller.stage.workers.complete(0)
        await asyncio.sleep(0.5)
        came = 0
        with suppress(ConnectionError):
            while came < 2 * rows and (piece := await reader.read(65_536)):
                came += len(piece)
        assert (came >= 2 * rows) is whole
        writer.close()
        await caller.answered(1)


async def test_an_answer_larger_than_any_body_is_given(serve: Serve) -> None:
    async with serve(max_body_bytes=300) as caller:
        asking = asyncio.create_task(caller.infer(1))
        await caller.stage.taken(1)
        output = BatchOutput((1, 1_000), memoryview(bytearray(1_000)))
        caller.stage.workers.complete(0, output)
        assert await asking == [0] * 1_000


async def test_whether_a_body_is_wanted_is_told_before_it_is_sent(serve: Serve) -> None:
    async with serve() as caller:
        body = json.dumps(request_of(3)).encode()
        for expectation, length, line in (
            ("100-continue", LIMIT + 1, b"HTTP/1.1 413 "),
            ("more", len(body), b"HTTP/1.1 417 "),
            ("100-Continue", len(body), b"HTTP/1.1 100 "),
        ):
            reader, writer = await caller.connect()
            writer.write(
                f"POST {INFER} HTTP/1.1\r\nHost: h\r\nExpect: {expectation}\r\n"
                f"Content-Length: {length}\r\n\r\n".encode()
            )
            assert (await reader.readline()).startswith(line)
            if line.startswith(b"HTTP/1.1 100"):
                writer.write(body)
                await caller.stage.taken(1)
                caller.stage.workers.complete(0)
                await reader.readuntil(b'"data":[3,3]')
            writer.close()


async def test_who_is_not_known_is_refused_before_its_body_is_read(
    serve: Serve, tmp_path: Path
) -> None:
    known = {hashlib.sha256(b"secret").hexdigest()}
    tenant = parse_tenants(
        "".join(f'[tenants.t]\ntokens = ["sha256:{one}"]\nmodels = ["*"]\n' for one in known), "t"
    )
    tokens = Tenants(tenant)
    async with serve(tenants=lambda: tokens) as caller:
        for token in ("Bearer wrong", "Basic secret", "", "Bearer é", "Bearer a\tb"):
            reader, writer = await caller.connect()
            writer.write(
                f"POST {INFER} HTTP/1.1\r\nHost: h\r\nAuthorization: {token}\r\n"
                f"Content-Length: 900\r\n\r\n".encode()
            )
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 "), token
            assert b"WWW-Authenticate: Bearer" in await reader.readuntil(b"\r\n\r\n")
            writer.close()
        headers = {"Authorization": "Bearer secret"}
        told = await caller.refused(b"nonsense", 400, **headers)
        assert told.startswith("expected a request in JSON")
        async with caller.session.get(caller.url + "/v2/health/live", headers=headers) as answer:
            assert await answer.json() == {"live": True}


async def test_what_nobody_foresaw_is_logged_and_tells_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a secret")

    async with serve() as caller:
        with monkeypatch.context() as patched:
            patched.setattr(service, "read_infer", fail)
            told = await caller.refused(b"{}", 500)
        incident = told.rpartition(" ")[2]
        assert told == f"internal error; the server's log has it under the id {incident}"
        assert f"incident {incident}" in caplog.text
        await caller.answered(1)


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", ""])
async def test_pages_in_browsers_are_refused(serve: Serve, origin: str) -> None:
    async with serve() as caller:
        body = json.dumps(request_of(1)).encode()
        told = await caller.refused(body, 403, Origin=origin)
        assert told == f"expected no call of a web page, got one of {origin!r}"
        await caller.answered(1)


@pytest.mark.parametrize("length", ["-1", "1.5", "x", "²", ""])
async def test_a_length_that_is_none_is_refused(serve: Serve, length: str) -> None:
    async with serve() as caller:
        told = await caller.refused(b"{}", 400, **{"Inference-Header-Content-Length": length})
        assert told.startswith("expected 'Inference-Header-Content-Length' in bytes, got ")


async def test_what_is_no_http_is_refused_and_harms_nobody(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as caller:
        for nonsense in (
            b"\0" * 100,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        ):
            reader, writer = await caller.connect()
            writer.write(nonsense)
            said = await reader.read()
            assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), said
            assert b"Server: headrace\r\n" in said
            assert b'{"error":"expected a call over HTTP/1.1: ' in said
            writer.close()
        await caller.answered(1)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/", 404, "there is no GET /"),
        ("GET", INFER, 405, f"there is no GET {INFER}; expected POST"),
        ("GET", "/v2/models/nobody", 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/model/versions/2", 404, "Request for unknown model: 'model' version"),
        ("GET", "/v2/models/model/ready/now", 404, "there is no GET /v2/models/model/ready/now"),
        ("GET", "/v2/trace/setting", 501, "/v2/trace/setting is not supported by this server"),
        ("POST", "/v2/models/model/generate", 501, "/v2/models/model/generate is not supported"),
        ("POST", "/v2/repository/models/model/load", 503, "explicit model load / unload is not"),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501, "CUDA shared memory is not"),
        ("POST", "/v2/cudasharedmemory/unregister", 501, "CUDA shared memory is not"),
    ],
)
async def test_what_there_is_not_is_told(
    serve: Serve, method: str, path: str, status: int, told: str
) -> None:
    async with (
        serve() as caller,
        caller.session.request(method, caller.url + path) as answer,
    ):
        assert answer.status == status
        assert (await answer.json())["error"].startswith(told)


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v2/repository/index", b'{"ready": 1}', "expected 'ready' to be true or false, got 1"),
        ("/v2/repository/index", b"[]", "expected a JSON object"),
        (
            "/v2/repository/models/m/load",
            b'{"parameters": {"config": 1.5}}',
            "parameter 'config': expected text, true, false or 63 bits",
        ),
        ("/v2/systemsharedmemory/region/r/register", b"{}", "expected a region of memory: "),
        (
            "/v2/systemsharedmemory/region/r/register",
            b'{"key": "/k", "byte_size": -1}',
            "expected a region of memory: Expected `int` >= 0",
        ),
    ],
)
async def test_bodies_that_say_something_else_are_refused(
    serve: Serve, path: str, body: bytes, told: str
) -> None:
    async with serve() as caller, caller.session.post(caller.url + path, data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"].startswith(told)

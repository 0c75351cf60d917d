"""HTTP of the real command: who gets in, what it outlives, and what is left when all is over."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import create_connection
from ssl import SSLContext, SSLSession, create_default_context
from typing import Any

import numpy as np
import pytest

from certificate_files import Pair, self_signed
from command_line import headrace, headrace_without, refusal
from headrace import Client, Tls
from headrace_server.testing import ServerProcess
from reading_metrics import until_metric
from worker_processes import alive, children_of, command_of
from written_models import write_model

pytestmark = pytest.mark.e2e

SECONDS = 60.0
MODELS = {
    "affine": """
        from headrace_server import Model, TensorSpec

        class Affine(Model):
            inputs = [TensorSpec("x", "FP32", [1])]
            outputs = [TensorSpec("y", "FP32", [1])]

            def forward(self, x):
                return 2 * x + 1
    """,
    "slow": """
        import time
        from headrace_server import Model, TensorSpec

        class Slow(Model):
            inputs = [TensorSpec("x", "FP32", [1])]
            outputs = [TensorSpec("y", "FP32", [1])]

            def load(self, context):
                self.running = context.directory / "running"

            def forward(self, x):
                self.running.touch()
                time.sleep(float(x[0, 0]))
                return x
    """,
}
HTTP = ("--http-port", "0")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    for name, source in MODELS.items():
        write_model(repository, name, source)
    return repository


@pytest.fixture
def directory() -> Iterator[Path]:
    """For temporary files of the server; its path is short, as that of a socket must be."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="http-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(repository, *HTTP) as server:
        yield server


@pytest.fixture
def mortal(repository: Path, directory: Path) -> Iterator[ServerProcess]:
    """A server for one test, which may end it."""
    environment = {"TMPDIR": str(directory)}
    with ServerProcess(repository, *HTTP, environment=environment) as server:
        yield server


class Caller:
    """One connection, kept open."""

    def __init__(self, server: ServerProcess, context: SSLContext | None = None) -> None:
        address = server.http_address
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection(address, timeout=SECONDS)
            if context is None
            else http.client.HTTPSConnection(address, timeout=SECONDS, context=context)
        )

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status, and what the body says."""
        sent = None if body is None else json.dumps(body)
        self._connection.request(method, path, sent, headers)
        answer = self._connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said) if said else None

    def infer(self, model: str, value: float, **headers: str) -> float:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
        path = f"/v2/models/{model}/infer"
        status, said = self.ask("POST", path, {"inputs": [tensor]}, **headers)
        assert status == 200, said
        number: float = said["outputs"][0]["data"][0]
        return number

    def send(self, model: str, value: float) -> None:
        """Ask, and do not wait for the answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}
        body = json.dumps({"inputs": [tensor]})
        self._connection.request("POST", f"/v2/models/{model}/infer", body)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def busy(server: ServerProcess, repository: Path, seconds: float) -> Iterator[None]:
    """Somebody whose call runs for so long, alone on the worker of `slow`, from now on."""
    running = repository / "slow" / "1" / "running"
    running.unlink(missing_ok=True)  # warm-up made it
    caller, answers = Caller(server), []
    calling = threading.Thread(target=lambda: answers.append(caller.infer("slow", seconds)))
    calling.start()
    until(running.exists)
    yield
    calling.join()
    caller.close()
    assert answers == [seconds]


@pytest.fixture
def caller(server: ServerProcess) -> Iterator[Caller]:
    caller = Caller(server)
    yield caller
    caller.close()


def gateway_of(server: ServerProcess) -> int:
    (gateway,) = (pid for pid in children_of(server.pid) if "gateway_main" in command_of(pid))
    return gateway


def until(true: Callable[[], bool]) -> None:
    by = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < by
        time.sleep(0.02)


def test_it_is_the_same_server_over_http_and_over_grpc(
    mortal: ServerProcess, directory: Path
) -> None:
    server, caller = mortal, Caller(mortal)
    assert caller.infer("affine", 3.0) == 7.0
    with Client(server.grpc_address) as client:
        assert client.infer("affine", {"x": np.array([[3.0]], np.float32)})["y"] == 7.0
        (statistics,) = client.statistics("affine")
    assert statistics.success.count == 2
    until_metric(server, 'headrace_requests_total{model="affine",outcome="ok",version="1"}', 2)
    status, said = caller.ask("GET", "/v2/models/affine/stats")
    assert (status, said["model_stats"][0]["inference_count"]) == (200, 2)
    gateway = gateway_of(server)
    if sys.platform == "linux":
        assert "torch" not in Path(f"/proc/{gateway}/maps").read_text()
    caller.close()
    processes = children_of(server.pid)
    assert server.stop() == 0
    assert not any(map(alive, processes))
    assert os.listdir(directory) == []


def test_a_gateway_that_is_killed_comes_back_and_who_connects_meanwhile_waits_for_it(
    server: ServerProcess, caller: Caller
) -> None:
    assert caller.infer("affine", 1.0) == 3.0
    lost = gateway_of(server)
    os.kill(lost, signal.SIGKILL)
    until(lambda: not alive(lost))
    other = Caller(server)
    assert other.infer("affine", 2.0) == 5.0
    other.close()
    assert gateway_of(server) != lost
    assert any("the HTTP gateway was lost: it ended with status -9" in line for line in server.log)


def test_a_killed_server_takes_its_gateway_along(mortal: ServerProcess, directory: Path) -> None:
    gateway = gateway_of(mortal)
    mortal.kill()
    until(lambda: not alive(gateway))
    assert os.listdir(directory) == []


def test_what_was_admitted_over_http_is_answered_when_the_server_stops(
    mortal: ServerProcess, repository: Path
) -> None:
    with busy(mortal, repository, 1.0):
        assert mortal.stop() == 0


def test_who_hangs_up_is_counted_as_gone(
    server: ServerProcess, caller: Caller, repository: Path
) -> None:
    with busy(server, repository, 3.0):
        caller.send("slow", 0.1)
        until_metric(server, 'headrace_queue_requests{model="slow",version="1"}', 1)
        caller.close()
        cancelled = 'headrace_requests_total{model="slow",outcome="cancelled",version="1"}'
        until_metric(server, cancelled, 1)


def test_a_deadline_is_kept_over_http(
    server: ServerProcess, caller: Caller, repository: Path
) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    body = {"inputs": [tensor], "parameters": {"timeout": 50_000}}
    with busy(server, repository, 3.0):
        status, said = caller.ask("POST", "/v2/models/slow/infer", body)
        assert (status, said["reason"]) in ((503, "predicted_late"), (503, "queue_timeout")), said


def test_tokens_and_certificates_count_over_http_too(repository: Path, tmp_path: Path) -> None:
    served, own = self_signed(tmp_path, "server"), self_signed(tmp_path, "client")
    made = headrace("token")
    token = {"Authorization": f"Bearer {made.stdout.strip()}"}
    tokens = tmp_path / "tokens.toml"
    line = made.stderr.partition("tokens = ")[2].strip()
    tokens.write_text(f'[tenants.t]\ntokens = {line}\nmodels = ["affine"]\n')
    secured = ("--tls-cert", str(served.cert), "--tls-key", str(served.key))
    mutual = ("--tls-client-ca", str(own.cert), "--tokens", str(tokens))
    with ServerProcess(repository, *HTTP, *secured, *mutual) as server:
        context = create_default_context(cafile=str(served.cert))
        with pytest.raises(OSError, match=r"(?i)certificate required|ssl|reset|closed"):
            Caller(server, context).ask("GET", "/v2/health/live")
        context.load_cert_chain(own.cert, own.key)
        caller = Caller(server, context)
        assert caller.ask("GET", "/v2/health/ready") == (200, {"ready": True})
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}):
            status, said = caller.ask("GET", "/v2/models/affine", **headers)
            assert (status, said["reason"]) == (401, "unauthenticated")
        assert caller.infer("affine", 1.0, **token) == 3.0
        status, said = caller.ask("GET", "/v2/models/slow", **token)
        assert (status, said["reason"]) == (403, "not_allowed")
        status, said = caller.ask("POST", "/v2/repository/index", **token)
        assert [model["name"] for model in said] == ["affine"]
        status, said = caller.ask("POST", "/v2/repository/models/affine/unload", {}, **token)
        assert (status, said["reason"]) == (403, "not_allowed")
        caller.close()
        assert made.stdout.strip() not in "".join(server.log)


def test_a_renewed_certificate_counts_from_the_next_connection_on(
    repository: Path, tmp_path: Path
) -> None:
    old, new = self_signed(tmp_path, "old"), self_signed(tmp_path, "new")
    trusted, new_trusted = (tmp_path / name for name in ("trusted.crt", "new-trusted.crt"))
    trusted.write_bytes(old.cert.read_bytes())
    new_trusted.write_bytes(new.cert.read_bytes())
    served = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    old.move_to(served)
    secured = ("--tls-cert", str(served.cert), "--tls-key", str(served.key))
    with ServerProcess(repository, *HTTP, *secured) as server:
        caller = Caller(server, create_default_context(cafile=str(trusted)))
        assert caller.infer("affine", 1.0) == 3.0
        new.move_to(served)
        with pytest.raises(OSError, match="certificate verify failed"):
            Caller(server, create_default_context(cafile=str(trusted))).ask("GET", "/v2")
        other = Caller(server, create_default_context(cafile=str(new_trusted)))
        assert other.infer("affine", 1.0) == 3.0
        assert caller.infer("affine", 2.0) == 5.0  # who is connected stays so
        with Client(server.grpc_address, tls=Tls(new_trusted)) as client:
            client.server_metadata()
        caller.close()
        other.close()


def test_who_was_let_in_before_its_authority_was_taken_out_resumes_no_session(
    repository: Path, tmp_path: Path
) -> None:
    served, own, other = (self_signed(tmp_path, name) for name in ("server", "own", "other"))
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(own.cert.read_bytes())
    secured = ("--tls-cert", str(served.cert), "--tls-key", str(served.key))
    with ServerProcess(repository, *HTTP, *secured, "--tls-client-ca", str(trusted)) as server:
        context = create_default_context(cafile=str(served.cert))
        context.load_cert_chain(own.cert, own.key)
        host, _, port = server.http_address.rpartition(":")

        def ask(session: SSLSession | None) -> tuple[bytes, SSLSession | None]:
            with (
                create_connection((host, int(port)), timeout=SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host, session=session) as connection,
            ):
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n")
                return connection.recv(15), connection.session

        said, session = ask(None)
        assert said == b"HTTP/1.1 200 OK"
        trusted.write_bytes(other.cert.read_bytes())
        said = b""
        with suppress(OSError):
            said, _ = ask(session)
        assert said == b""


def test_a_port_for_http_in_use_is_one_line(server: ServerProcess, repository: Path) -> None:
    port = server.http_address.rpartition(":")[2]
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", port)
    line = refusal(1, "serve", str(repository), *ports)
    assert f"cannot listen for HTTP on {server.http_address}" in line


def test_where_aiohttp_is_missing_the_command_says_what_to_install(repository: Path) -> None:
    ports = ("--grpc-port", "0", "--metrics-port", "0", "--http-port", "0")
    done = headrace_without("aiohttp", "serve", str(repository), *ports)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "headrace: --http-port needs aiohttp: install it with pip install 'headrace[server,http]'\n"
    )

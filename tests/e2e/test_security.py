"""The real command with real certificates and tokens: who gets in, and renewal under load."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from ssl import create_default_context

import pytest

from certificate_files import Pair, self_signed
from command_line import headrace, refusal
from headrace import Client, RetryPolicy, Tls
from headrace.errors import InvalidInput, Unavailable
from headrace_server.testing import ServerProcess
from headrace_server.transport.tenants import hash_of
from written_models import write_model

pytestmark = pytest.mark.e2e

ECHO = """
    from headrace_server import Model, TensorSpec

    class Echo(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def forward(self, x):
            return x
"""
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "echo", ECHO)
    return repository


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def server_pair(directory: Path) -> Pair:
    return self_signed(directory, "server")


@pytest.fixture(scope="module")
def client_pair(directory: Path) -> Pair:
    return self_signed(directory, "client")


@pytest.fixture(scope="module")
def token(directory: Path) -> Path:
    """A file with a token that may use `echo`, and beside it the server's tokens file."""
    made = headrace("token")
    assert made.returncode == 0
    text = made.stdout.strip()
    line = made.stderr.partition("tokens = ")[2].strip()
    assert line == f'["{hash_of(text)}"]'
    (directory / "tokens.toml").write_text(f'[tenants.t]\ntokens = {line}\nmodels = ["ech?"]\n')
    (directory / "token").write_text(made.stdout)
    return directory / "token"


@pytest.fixture(scope="module")
def mutual(
    repository: Path, server_pair: Pair, client_pair: Pair, token: Path
) -> Iterator[ServerProcess]:
    """Wants a client's certificate and a token."""
    with ServerProcess(
        repository,
        *("--tls-cert", str(server_pair.cert), "--tls-key", str(server_pair.key)),
        *("--tls-client-ca", str(client_pair.cert)),
        *("--tokens", str(token.with_name("tokens.toml"))),
    ) as server:
        yield server


def flags(server: ServerProcess, ca: Pair, own: Pair, token: Path) -> list[str]:
    return [
        *("--address", server.grpc_address, "--timeout", "5", "--tls-ca", str(ca.cert)),
        *("--tls-cert", str(own.cert), "--tls-key", str(own.key), "--token-file", str(token)),
    ]


def test_with_certificate_and_token_every_command_is_served(
    mutual: ServerProcess, server_pair: Pair, client_pair: Pair, token: Path
) -> None:
    access = flags(mutual, server_pair, client_pair, token)
    for command in (
        ("infer", "echo", "[3]"),
        ("models",),
        ("explain", "echo"),
        ("bench", "echo", "--concurrency", "2", "--duration", "0.3", "--warmup", "0.1"),
        ("bench", "echo", "--concurrency", "2", "--duration", "0.3", "--transport", "stream"),
    ):
        done = headrace(*command, *access)
        assert done.returncode == 0, done.stderr


def test_a_client_without_certificate_is_refused(
    mutual: ServerProcess, server_pair: Pair, token: Path
) -> None:
    secret = token.read_text().strip()
    with Client(
        mutual.grpc_address, tls=Tls(server_pair.cert), token=secret, retry=ONCE, timeout=5
    ) as client:
        with pytest.raises(Unavailable) as refused:
            client.server_metadata()
        assert refused.value.reason is None
    address = ("--address", mutual.grpc_address, "--timeout", "5")
    for flags, hint in (
        ((), "does it ask for TLS (--tls)?"),
        (("--tls-ca", str(server_pair.cert)), "does it ask for a certificate of yours (--tls-cert"),
    ):
        line = refusal(1, "models", *address, *flags)
        assert hint in line


def test_a_client_with_a_certificate_of_somebody_else_is_refused(
    mutual: ServerProcess, server_pair: Pair
) -> None:
    other = Tls(server_pair.cert, server_pair.cert, server_pair.key)
    with (
        Client(mutual.grpc_address, tls=other, retry=ONCE, timeout=5) as client,
        pytest.raises(Unavailable),
    ):
        client.server_live()


def test_a_server_that_the_client_does_not_trust_gets_no_request(
    mutual: ServerProcess, client_pair: Pair, token: Path
) -> None:
    line = refusal(1, "models", *flags(mutual, client_pair, client_pair, token))
    assert "no server answers at" in line


def test_metrics_ask_for_the_certificate_too(
    mutual: ServerProcess, server_pair: Pair, client_pair: Pair
) -> None:
    context = create_default_context(cafile=str(server_pair.cert))
    with pytest.raises(OSError, match=r"(?i)certificate required|ssl|reset"):
        urllib.request.urlopen(mutual.metrics_url, context=context, timeout=5)
    context.load_cert_chain(client_pair.cert, client_pair.key)
    with urllib.request.urlopen(mutual.metrics_url, context=context, timeout=5) as answer:
        assert b"headrace_build_info" in answer.read()


def test_neither_token_nor_key_nor_hash_is_ever_logged(
    mutual: ServerProcess, server_pair: Pair, client_pair: Pair, token: Path
) -> None:
    secret = token.read_text().strip()
    tls = Tls(server_pair.cert, client_pair.cert, client_pair.key)
    with Client(mutual.grpc_address, tls=tls, token=secret + "x", retry=ONCE) as client:
        for _ in range(2):
            with pytest.raises(Exception, match="expected the metadata"):
                client.infer("echo", {"x": [[1.0]]})
    log = "".join(mutual.log)
    for hidden in (secret, hash_of(secret)[7:], "PRIVATE KEY"):
        assert hidden not in log


@pytest.mark.parametrize("fronts", ["1", "2"])
def test_a_renewed_certificate_counts_at_once_and_no_request_fails(
    repository: Path, tmp_path: Path, fronts: str
) -> None:
    old = self_signed(tmp_path, "old")
    served = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(old.cert.read_bytes())
    old.move_to(served)
    new = self_signed(tmp_path, "new")
    new_trusted = tmp_path / "new-trusted.crt"
    new_trusted.write_bytes(new.cert.read_bytes())
    both = tmp_path / "both.crt"
    both.write_bytes(trusted.read_bytes() + new_trusted.read_bytes())

    secured = ("--tls-cert", str(served.cert), "--tls-key", str(served.key))
    with ServerProcess(repository, *secured, "--fronts", fronts) as server:
        stop = threading.Event()
        answered: list[float] = []
        failed: list[Exception] = []

        def call(reconnect: bool) -> None:
            client = Client(server.grpc_address, tls=Tls(both))
            while not stop.is_set():
                try:
                    answered.append(client.infer("echo", {"x": [[2.0]]})["y"][0, 0])
                except Exception as error:
                    failed.append(error)
                    return
                if reconnect:
                    client.close()
                    client = Client(server.grpc_address, tls=Tls(both))
            client.close()

        callers = [threading.Thread(target=call, args=(again,)) for again in (True, True, False)]
        for caller in callers:
            caller.start()
        with Client(server.grpc_address, tls=Tls(trusted), retry=ONCE) as client:
            client.server_metadata()
        new.move_to(served)
        with Client(server.grpc_address, tls=Tls(new_trusted), retry=ONCE) as client:
            client.server_metadata()
        context = create_default_context(cafile=str(new_trusted))
        with urllib.request.urlopen(server.metrics_url, context=context, timeout=5) as answer:
            assert answer.status == 200
        with (
            Client(server.grpc_address, tls=Tls(trusted), retry=ONCE, timeout=5) as client,
            pytest.raises(Unavailable),
        ):
            client.server_metadata()
        before = len(answered)
        while len(answered) < before + 20 and not failed:
            stop.wait(0.01)
        stop.set()
        for caller in callers:
            caller.join()
        assert not failed
        assert set(answered) == {2.0}


# -- refusals in one line ---------------------------------------------------------------------


def test_files_that_make_no_tls_are_one_line(
    repository: Path, server_pair: Pair, client_pair: Pair
) -> None:
    start = ("serve", str(repository), "--grpc-port", "0", "--metrics-port", "0")
    cert, key = str(server_pair.cert), str(client_pair.key)
    assert "needs '--tls-key'" in refusal(2, *start, "--tls-cert", cert)
    assert "mismatch" in refusal(1, *start, "--tls-cert", cert, "--tls-key", key)
    assert "cannot read none.toml" in refusal(1, *start, "--tokens", "none.toml")


def test_a_client_with_unusable_files_says_which(server_pair: Pair, tmp_path: Path) -> None:
    assert "cannot read none.crt" in refusal(2, "models", "--tls-ca", "none.crt")
    assert "together" in refusal(2, "models", "--tls-cert", str(server_pair.cert))
    assert "in PEM in" in refusal(2, "models", "--tls-ca", str(server_pair.key))
    assert "cannot read none" in refusal(2, "models", "--token-file", "none")
    (tmp_path / "empty").touch()
    assert "expected one token" in refusal(2, "models", "--token-file", str(tmp_path / "empty"))
    with pytest.raises(InvalidInput, match="without spaces"):
        Client(token="two words")


@pytest.mark.parametrize(
    ("extra", "lacking"),
    [
        ((), "without TLS or authentication"),
        (("--tokens",), "without TLS"),
        (("--tls-cert", "--tls-key"), "without authentication"),
        (("--tls-cert", "--tls-key", "--tokens"), ""),
    ],
)
def test_a_wide_address_is_warned_about_for_what_it_lacks(
    extra: tuple[str, ...], lacking: str, server_pair: Pair, token: Path
) -> None:
    from headrace_server.cli.serve import exposed_without
    from headrace_server.config import ServerConfig

    files = {flag.removeprefix("--").replace("-", "_"): "file" for flag in extra}
    exposure = exposed_without(ServerConfig(host="0.0.0.0", **files))
    assert exposure == lacking.removeprefix("without ")
    assert exposed_without(ServerConfig(**files)) == ""


def test_memory_is_exposed_where_strangers_reach_a_server_that_shares_it() -> None:
    from headrace_server.cli.serve import exposes_memory
    from headrace_server.config import ServerConfig

    assert exposes_memory(ServerConfig(host="0.0.0.0", allow_client_shm=True))
    assert not exposes_memory(ServerConfig(host="0.0.0.0", allow_client_shm=True, tokens="t"))
    assert not exposes_memory(ServerConfig(host="0.0.0.0"))
    assert not exposes_memory(ServerConfig(allow_client_shm=True))

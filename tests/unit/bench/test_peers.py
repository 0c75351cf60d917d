"""The parts of `bench.peers` that need no server: settings, wires, quotients, the report."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from bench.peers.environments import UnavailableError, last_error
from bench.peers.generate import HttpTransport, content_length
from bench.peers.group import ProcessGroup
from bench.peers.h2load import rate_of
from bench.peers.match import Clock
from bench.peers.peer import Launch, Setting
from bench.peers.plots import draw
from bench.peers.report import report
from bench.peers.results import Findings, Idle, Problem, Run, Spread, Trial, best, ratio
from bench.peers.running import RunningPeer
from bench.peers.servers import PEERS
from bench.peers.servers.echo_peer import EchoPeer
from bench.peers.servers.triton_peer import configuration
from bench.peers.shots import FailedRunError, Shot
from bench.peers.wire import Grpc, JsonHttp, NoAnswerError, RawHttp, http_request
from bench.peers.workloads import Workload

from headrace.access import OPEN_ACCESS

VECTOR = np.arange(4, dtype=np.float32)[None]
TEXT = np.array([["späte".encode()]], dtype=object)


def shot(per_s: float = 100.0, cpu_us: float = 10.0, p50_ms: float = 1.0) -> Shot:
    return Shot(per_s, cpu_us, p50_ms, 2 * p50_ms, 1000)


def run(contender: str, number: int, made: Shot, scenario: str = "unary") -> Run:
    return Run(scenario, contender, "nothing set", "gRPC", number, made)


def test_rate_is_read_from_what_h2load_prints() -> None:
    printed = (
        "finished in 1.02s, 11764.70 req/s, 1.1MB/s\nrequests: 12 total, 12 succeeded, 0 failed"
    )
    assert rate_of(printed, 12) == 11764.70


@pytest.mark.parametrize(
    "printed", ["", "finished in 1s, 9 req/s\nrequests: 12 total, 11 succeeded"]
)
def test_a_run_with_failed_requests_does_not_count(printed: str) -> None:
    with pytest.raises(FailedRunError, match="expected 12 requests to succeed"):
        rate_of(printed, 12)


def test_quotients_are_of_runs_of_the_same_round() -> None:
    ours = [run("a", number, shot(per_s)) for number, per_s in enumerate((100.0, 400.0, 900.0))]
    theirs = [run("b", number, shot(per_s)) for number, per_s in ((0, 100.0), (2, 300.0))]
    assert ratio(ours, theirs, "per_s") == Spread(2.0, 1.0, 3.0)
    assert ratio(ours, [], "per_s") is None


def test_the_best_setting_depends_on_the_goal() -> None:
    fast = Trial("mlp", "per_s", "Triton", "64", shot(per_s=900.0, p50_ms=9.0))
    prompt = Trial("mlp", "per_s", "Triton", "1", shot(per_s=300.0, p50_ms=1.0))
    assert best([fast, prompt], "per_s") is fast
    assert best([fast, prompt], "p50_ms") is prompt


def test_settings_say_what_they_are() -> None:
    assert str(Setting(1)) == "no batching"
    assert str(Setting(16, 0.5, "in process")) == "up to 16 rows, 0.5 ms, in process"
    assert str(Setting(0, note="nothing set")) == "nothing set"


def test_triton_is_configured_as_the_setting_says() -> None:
    assert "dynamic_batching" not in configuration("mlp", Setting(1))
    assert "dynamic_batching { }" in configuration("sentences", Setting(32))
    delayed = configuration("images", Setting(64, 0.5))
    assert "max_batch_size: 64" in delayed
    assert "max_queue_delay_microseconds: 500" in delayed
    assert "dims: [ 3, 224, 224 ]" in delayed


def test_every_peer_is_pinned_and_has_distinct_settings() -> None:
    for peer in PEERS.values():
        assert peer.version
        for workload in ("mlp", "sentences", "images"):
            settings = [str(setting) for setting in peer.settings(workload)]
            assert len(set(settings)) == len(settings) > 0


def test_what_pip_says_last_is_the_reason() -> None:
    assert last_error("WARNING: a\nERROR: no such version\nnotice") == "ERROR: no such version"
    assert last_error("killed\nWARNING: a") == "killed"
    assert last_error("WARNING: a") == "pip did not say why"


def test_tensors_travel_as_bytes_json_or_protobuf() -> None:
    raw, coded = RawHttp("/inference"), JsonHttp("/predict")
    assert raw.array(raw.body("m", "input", VECTOR)).tolist() == VECTOR[0].tolist()
    assert raw.body("m", "text", TEXT) == TEXT[0, 0]
    assert json.loads(coded.body("m", "text", TEXT)) == {"text": "späte"}
    assert coded.array(b"[0.5, 2]").tolist() == [0.5, 2.0]
    assert VECTOR.tobytes() in Grpc().body("m", "input", VECTOR)


def test_answers_without_a_length_are_refused() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n") == 12
    with pytest.raises(ValueError, match="content-length"):
        content_length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


class Mirror(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if self.path == "/inference" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def mirror() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_http_is_sent_over_connections_that_stay_open() -> None:
    right, wrong = RawHttp("/inference"), RawHttp("/elsewhere")

    async def send(address: str) -> list[str]:
        transport = HttpTransport(address, 30.0, OPEN_ACCESS)
        requests = [http_request(wire, address, b"12345678") for wire in (right, wrong)]
        answers = [await transport.send(request) for request in (*requests, *requests)]
        await transport.close()
        return answers

    with mirror() as address:
        assert asyncio.run(send(address)) == ["", "404", "", "404"]
        assert right.post(address, VECTOR.tobytes()).tolist() == VECTOR[0].tolist()
        with pytest.raises(NoAnswerError, match="status 404"):
            wrong.post(address, b"1234")
    with pytest.raises(NoAnswerError):
        right.post(address, b"nobody listens any more")


def test_a_share_of_the_time_is_of_what_is_left() -> None:
    assert Clock(-1.0).is_past
    assert Clock(-1.0).share(1.0, of=2.0).is_past
    assert not Clock(1e6).share(1.0, of=2.0).is_past


def test_what_ends_takes_everything_it_started_with_it(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '1000'], "
    child += "start_new_session=True); print(p.pid, flush=True); time.sleep(1000)"
    group = ProcessGroup([sys.executable, "-c", child], {}, tmp_path)
    while not group.log.read_text().strip():
        assert group.status is None
    orphan = int(group.log.read_text())
    group.stop()
    assert group.status is not None
    states = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(orphan)], check=False, capture_output=True, text=True
    ).stdout
    assert states.strip()[:1] in ("", "Z")  # nobody may have read its status yet


class Broken(EchoPeer):
    """Ends at once, with words."""

    name = "broken"

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        return Launch([sys.executable, "-c", "raise SystemExit('no such model')"])


class Wrong(EchoPeer):
    """Answers, but with its input where a model would answer otherwise."""

    echoes = False


def workload(expected: Sequence[np.ndarray]) -> Workload:
    return Workload("mlp", "", "input", [VECTOR], expected, Path())


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("peer", "words"),
    [(Broken(), ("ended with status 1", "no such model")), (Wrong(), ("wrong answer of mlp",))],
)
def test_a_server_that_fails_or_lies_is_not_timed(peer: EchoPeer, words: Sequence[str]) -> None:
    with (
        pytest.raises(UnavailableError) as failure,
        RunningPeer(peer, workload([VECTOR[0] + 1]), Setting()),
    ):
        pass
    assert all(word in str(failure.value) for word in words)


@pytest.mark.e2e
def test_a_server_that_ended_is_started_again_for_its_next_turn() -> None:
    with RunningPeer(EchoPeer(), workload([VECTOR[0]]), Setting()) as server:
        (pid,) = server.usage().by_pid
        server.revive()
        assert [*server.usage().by_pid] == [pid]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its status is left for its parent
        with pytest.raises(FailedRunError, match="ended with status -9"):
            server.usage()
        server.revive()
        (later,) = server.usage().by_pid
        assert later != pid


def findings() -> Findings:
    return Findings(
        {"machine": "2 cores"},
        7.5,
        {"Triton": "2.51"},
        600.0,
        [
            run("Headrace", 0, shot(per_s=80.0, cpu_us=14.0)),
            run("bare echo", 0, shot(cpu_us=10.0)),
            run("Triton", 0, shot(per_s=120.0)),
        ],
        [Trial("mlp", "per_s", "Triton", f"up to {n} rows", shot(per_s=n)) for n in (16, 64)],
        [Idle("Headrace", 0.001, 200.0)],
        [Problem("LitServe", "ended with status 1")],
    )


def test_raw_data_are_read_again_as_they_were_written() -> None:
    assert Findings.from_json(findings().to_json()) == findings()


def test_the_report_says_what_was_reached_missed_and_not_measured(tmp_path: Path) -> None:
    text = report(findings(), ["benchmarks.png"])
    lines = text.splitlines()

    def line(*words: str) -> str:
        (found,) = [line for line in lines if all(word in line for word in words)]
        return found

    assert "reached" in line("CPU per answer: Headrace / bare echo", "at most 1.5", "1.40")
    assert "missed" in line("answers/s: Headrace / Triton |", "at least 0.75", "0.67")
    assert line("p50: Headrace / Triton", "not measured")
    assert "kept" in line("mlp", "up to 64 rows")
    assert "kept" not in line("mlp", "up to 16 rows")
    assert line("- LitServe: ended with status 1")
    assert line("busy with other work", "7.5")
    assert line("Headrace", "0.1%", "200")
    (picture,) = draw(findings(), tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")

"""`headrace bench` against a real server: what it measures, writes and says, and how it exits."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from command_line import COMMAND, TIMEOUT_S, headrace, headrace_without, refusal
from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e

QUICK = ("--duration", "0.6", "--warmup", "0.1", "--stable-within", "1000")
"""As short as it gets: three windows of 0.1 s, which always agree."""


@pytest.fixture(scope="module")
def address(callable_server: ServerProcess) -> str:
    return callable_server.grpc_address


def bench(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return headrace("bench", *arguments, "--address", address)


def measured(address: str, file: Path, *arguments: str) -> Any:
    done = bench(address, *arguments, "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(file.read_text())


def test_closed_loop_prints_a_row_for_each_step_and_writes_json_and_plot(
    address: str, tmp_path: Path
) -> None:
    file, plot = tmp_path / "out.json", tmp_path / "out.png"
    done = bench(
        address,
        *("affine", "--concurrency", "1", "8", "--rows", "2", *QUICK),
        *("--json", str(file), "--plot", str(plot)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert header.split()[0] == "concurrency"
    assert [row.split()[0] for row in rows[:2]] == ["1", "8"]
    found = json.loads(file.read_text())
    assert (found["model"], found["rows"]) == ("affine", 2)
    assert [step["concurrency"] for step in found["steps"]] == [1, 8]
    for step in found["steps"]:
        latency = step["latency_s"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert step["requests"] > 0
        assert step["throughput"] == pytest.approx(step["requests"] / step["measured_s"], rel=0.5)
        assert step["errors"] == {}
        assert step["stable"]
        assert len(step["windows"]) >= 3  # more where one had no answer on a busy machine
        assert step["server"]["mean_batch_rows"] >= 2
        assert all(int(size) % 2 == 0 for size in step["server"]["batches"])
        assert step["server"]["mean_compute_s"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_open_loop_sends_at_the_rate_from_several_processes(address: str, tmp_path: Path) -> None:
    found = measured(
        address,
        tmp_path / "out.json",
        *("letters", "--rate", "50", "--arrivals", "constant", "--shape", "text:2..5"),
        *("--processes", "2", "--duration", "2", "--stable-within", "1000"),
    )
    assert found["arrivals"] == "constant"
    (step,) = found["steps"]
    assert step["rate"] == 50
    assert 48 <= step["requests"] <= 51  # one second, each due every 20 ms
    assert step["errors"] == {}
    assert step["generator"]["send_lag_p99_s"] >= 0


def test_requests_may_share_streams(address: str, tmp_path: Path) -> None:
    found = measured(
        address,
        tmp_path / "out.json",
        *("affine", "--transport", "stream", "--concurrency", "8", *QUICK),
    )
    assert found["transport"] == "stream"
    (step,) = found["steps"]
    assert step["errors"] == {}
    assert step["requests"] > 0


def test_real_inputs_are_sent(address: str, tmp_path: Path) -> None:
    inputs = tmp_path / "texts.txt"
    inputs.write_text("fine\nraise\n")
    found = measured(
        address,
        tmp_path / "out.json",
        *("letters", "--input", str(inputs), "--concurrency", "2", *QUICK),
    )
    (step,) = found["steps"]
    failed = sum(step["errors"].values())
    assert 0 < failed < step["requests"]
    assert abs(failed - step["requests"] / 2) <= 3


def test_ctrl_c_keeps_what_was_measured(address: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    arguments = ("affine", "--address", address, "--concurrency", "1", "2", "--json", str(file))
    process = subprocess.Popen(
        [*COMMAND, "bench", *arguments, "--duration", "3", "--stable-within", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    header, row = process.stdout.readline(), process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert (header.split()[0], row.split()[0]) == ("concurrency", "1")
    assert (process.returncode, errors) == (1, "")
    assert json.loads(file.read_text())["steps"][0]["concurrency"] == 1


@pytest.mark.parametrize(
    ("status", "arguments", "words"),
    [
        (1, ("nobody",), ("NOT_FOUND", "unknown_model")),
        (1, ("affine", "--version", "7"), ("NOT_FOUND", "'affine' version 7")),
        (2, ("affine", "--shape", "x:8"), ("input 'x' has the shape [3]: expected 0 lengths",)),
        (2, ("affine", "--shape", "z:8"), ("no input 'z'; it takes x",)),
        (1, ("affine", "--rows", "65"), ("the model refuses the inputs", "batch-size", "64")),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    address: str, status: int, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    line = refusal(status, "bench", *arguments, "--address", address)
    assert all(word in line for word in words)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_file_that_cannot_be_written_is_named(address: str) -> None:
    done = bench(address, "affine", "--concurrency", "1", *QUICK, "--json", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == "headrace: cannot write /dev/full: No space left on device\n"


def test_a_server_that_is_not_there_is_one_line() -> None:
    line = refusal(1, "bench", "affine", "--address", "127.0.0.1:1")
    assert "no server answers at 127.0.0.1:1" in line


def test_a_step_that_is_never_answered_fails(address: str, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.txt"
    inputs.write_text("fine\n" + "raise\n" * 20_000)  # the first one is answered in the warm-up
    done = bench(address, "letters", "--input", str(inputs), "--concurrency", "1", "2", *QUICK)
    assert done.returncode == 1
    assert done.stderr.startswith("headrace: no request was answered at concurrency 1: ")
    assert done.stderr.count("\n") == 1
    assert len(done.stdout.splitlines()) >= 2  # what was measured is shown all the same


def test_without_matplotlib_a_plot_says_in_one_line_what_to_install() -> None:
    done = headrace_without("matplotlib", "bench", "affine", "--plot", "out.png")
    assert done.returncode == 1
    assert done.stderr == (
        "headrace: headrace bench --plot needs the plot extra (there is no module 'matplotlib'): "
        "pip install 'headrace[plot]'\n"
    )

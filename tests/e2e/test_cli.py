"""The real command as people and scripts use it: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import (
    COMMAND,
    TIMEOUT_S,
    headrace,
    headrace_without,
    redirected,
    refusal,
)
from headrace_server.cli.serve import ONE_SIGNAL_S
from headrace_server.testing import ServerProcess
from written_models import write_model

pytestmark = pytest.mark.e2e

ECHO = """
    from headrace_server import Model, TensorSpec

    class Echo(Model):
        inputs = [TensorSpec("x", "FP32", [2])]
        outputs = [TensorSpec("y", "FP32", [2])]

        def forward(self, x):
            return x
"""
GREETER = """
    import numpy as np
    from headrace_server import Model, TensorSpec

    class Greeter(Model):
        inputs = [TensorSpec("name", "BYTES", [1])]
        outputs = [TensorSpec("greeting", "BYTES", [1])]

        def forward(self, name):
            return np.array([[b"hello " + row[0]] for row in name], dtype=object)
"""
BROKEN = """
    raise RuntimeError("this model was never finished")
"""
PATIENT = """
    import time
    from headrace_server import Model, TensorSpec

    class Patient(Model):
        inputs = [TensorSpec("seconds", "FP32", [1])]
        outputs = [TensorSpec("slept", "FP32", [1])]

        def forward(self, seconds):
            if seconds.max() > 0:  # not the warm-up
                print("begun", flush=True)
                time.sleep(float(seconds.max()))
            return seconds
"""


def write_models(repository: Path, **sources: str) -> Path:
    for name, source in sources.items():
        write_model(repository, name, source)
    return repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(
        tmp_path_factory.mktemp("repository"), broken=BROKEN, echo=ECHO, greeter=GREETER
    )


@pytest.fixture(scope="module")
def address(repository: Path) -> Iterator[str]:
    with ServerProcess(repository) as server:
        yield server.grpc_address


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


QUICK_BENCH = ("bench", "echo", "--concurrency", "1", "--duration", "0.06", "--warmup", "0")


def at(address: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments, and where the server is if they call one."""
    calls = arguments[0] in ("infer", "models", "bench")
    return (*arguments, "--address", address) if calls else arguments


# -- without a server -------------------------------------------------------------------------


def test_help_lists_the_commands() -> None:
    done = headrace("--help")
    assert done.returncode == 0
    commands = ("serve", "check", "infer", "models", "explain", "bench")
    assert all(command in done.stdout for command in commands)


def test_version_is_that_of_the_distribution() -> None:
    done = headrace("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "headrace")
    assert done.stdout.split()[1][0].isdigit()


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['headrace', 'serve', '--help']\n"
        "from headrace_server.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print([m for m in ('torch', 'numpy', 'grpc') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("missing", ["typer", "rich", "torch", "prometheus_client"])
def test_without_the_server_extra_serve_says_in_one_line_what_to_install(missing: str) -> None:
    done = headrace_without(missing, "serve", "repository")
    assert done.returncode == 1
    assert done.stderr == (
        f"headrace: headrace serve needs the server extra (there is no module '{missing}'): "
        "pip install 'headrace[server]'\n"
    )


def test_an_unknown_flag_is_a_usage_error(repository: Path) -> None:
    done = headrace("serve", str(repository), "--grcp-port", "1")
    assert done.returncode == 2
    assert "--grcp-port" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_in_the_file_is_a_usage_error(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("grcp_port = 8001\n")
    line = refusal(2, "serve", str(repository), "--config", str(file))
    assert "unknown setting 'grcp_port'; did you mean 'grpc_port'?" in line


def test_a_value_out_of_range_is_a_usage_error(repository: Path) -> None:
    assert "'--grpc-port' = 65536" in refusal(2, "serve", str(repository), "--grpc-port", "65536")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_missing_repository_is_one_line(command: str, tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(1, command, str(tmp_path / "missing"))


@pytest.mark.parametrize("flag", ["--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_one_line(flag: str, taken_port: int, tmp_path: Path) -> None:
    ports = {"--grpc-port": "0", "--metrics-port": "0", flag: str(taken_port)}
    line = refusal(1, "serve", str(tmp_path), *(word for pair in ports.items() for word in pair))
    assert f"127.0.0.1:{taken_port}" in line
    assert flag in line


def test_calling_where_no_server_is_says_so_in_one_line(taken_port: int) -> None:
    # The port is taken by nobody who speaks the protocol, so the call runs into its timeout.
    line = refusal(1, "models", "--address", f"127.0.0.1:{taken_port}", "--timeout", "0.5")
    assert "DEADLINE_EXCEEDED" in line or "UNAVAILABLE" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("infer", "\udcff", "1"),
        ("infer", "echo", "1", "--version", "\udcff"),
        ("load", "\udcff"),
        ("explain", "\udcff"),
        ("bench", "\udcff"),
        ("models", "--address", "\udcff:1"),
    ],
)
def test_a_name_that_is_no_text_is_one_line(arguments: tuple[str, ...]) -> None:
    assert "expected text that UTF-8 can express" in refusal(2, *arguments)


# -- checking ---------------------------------------------------------------------------------


def test_check_loads_every_model_and_fails_for_a_broken_one(repository: Path) -> None:
    done = headrace("check", str(repository), "--json")
    assert done.returncode == 1
    found = {entry["model"]: entry for entry in json.loads(done.stdout)}
    assert {name: entry["state"] for name, entry in found.items()} == {
        "broken": "BROKEN",
        "echo": "READY",
        "greeter": "READY",
    }
    assert "this model was never finished" in found["broken"]["error"]
    assert found["echo"]["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [2], "optional": False}
    ]


def test_check_prints_a_table_and_succeeds_where_all_is_well(tmp_path: Path) -> None:
    done = headrace("check", str(write_models(tmp_path, greeter=GREETER)))
    assert done.returncode == 0
    assert "name BYTES [1]" in done.stdout
    assert "greeting BYTES [1]" in done.stdout


NETWORK = """
import torch
from headrace_server import Model, TensorSpec

class Network(Model):
    inputs = [TensorSpec("x", "FP32", [320])]
    outputs = [TensorSpec("y", "FP32", [320]), TensorSpec("best", "INT64", [1])]
    max_batch_size = 4

    def load(self, context):
        torch.manual_seed(1)
        self.network = torch.nn.Sequential(torch.nn.Linear(320, 320)).eval()

    def forward(self, x):
        y = self.network(x)
        return y, y.argmax(-1, keepdim=True)
"""


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_check_says_what_another_precision_changes(tmp_path: Path, precision: str) -> None:
    repository = write_models(tmp_path, network=NETWORK)
    (repository / "network" / "config.pbtxt").write_text(
        f'parameters {{ key: "precision" value {{ string_value: "{precision}" }} }}'
    )
    done = headrace("check", str(repository), "--json")
    assert done.returncode == 0
    (found,) = json.loads(done.stdout)
    compared = found["comparison"]
    assert compared["options"] == f"precision {precision}"
    assert compared["inputs"] == "random numbers"
    assert 0 < compared["max_difference"] < 0.1
    assert 0 < compared["max_relative_difference"] < 0.05
    assert 0.999 < compared["least_cosine"] < 1
    assert 0 <= compared["changed_share"] <= 1
    assert [speed["rows"] for speed in compared["speeds"]] == [1, 4]
    assert all(speed["plain_s"] > 0 and speed["faster_s"] > 0 for speed in compared["speeds"])


def test_check_refuses_an_option_that_is_none_by_its_line(tmp_path: Path) -> None:
    repository = write_models(tmp_path, network=NETWORK)
    (repository / "network" / "config.pbtxt").write_text(
        'max_batch_size: 4\nparameters { key: "precision" value { string_value: "fp4" } }'
    )
    done = headrace("check", str(repository))
    assert done.returncode == 1
    assert (
        "line 2: parameters[\"precision\"] must be one of 'bf16', 'int8', got 'fp4'" in done.stdout
    )


# -- calling a server ---------------------------------------------------------------------------


def answer(address: str, *arguments: str, stdin: str = "") -> Any:
    done = headrace("infer", *arguments, "--address", address, "--json", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_infer_sends_rows_of_text(address: str) -> None:
    greeted = answer(address, "greeter", "Ada", "Zoë")
    assert greeted == {"greeting": [["hello Ada"], ["hello Zoë"]]}


def test_infer_sends_named_and_piped_and_zero_inputs(address: str) -> None:
    assert answer(address, "echo", "--input", "x=[[1, 2], [3, 4]]") == {"y": [[1, 2], [3, 4]]}
    piped = answer(address, "echo", "--json-input", "-", stdin='{"x": [[5, 6]]}')
    assert piped == {"y": [[5, 6]]}
    assert answer(address, "echo", "--zeros", "--version", "1") == {"y": [[0, 0]]}


def test_infer_names_the_numbers_that_json_lacks(address: str) -> None:
    done = headrace(
        "infer", "echo", "[NaN, 1]", "[Infinity, -Infinity]", "--address", address, "--json"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout, parse_constant=pytest.fail) == {
        "y": [["NaN", 1], ["Infinity", "-Infinity"]]
    }


def test_infer_prints_names_types_shapes_and_values(address: str) -> None:
    done = headrace("infer", "echo", "[1, 2.5]", "--address", address)
    assert done.returncode == 0
    assert re.search(r"y +FP32 +\[1, 2\] +\[\[1\. , 2\.5\]\]", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "1"), ("NOT_FOUND", "unknown_model")),
        (("broken", "1"), ("UNAVAILABLE", "model_unavailable")),
        (("echo", "[1, 2, 3]"), ("INVALID_ARGUMENT", "wrong_shape", "Expected [-1, 2]")),
    ],
)
def test_a_refusal_of_the_server_is_one_line_with_code_and_reason(
    address: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    line = refusal(1, "infer", *arguments, "--address", address)
    assert all(word in line for word in words)


def test_a_value_that_does_not_fit_never_reaches_the_server(address: str) -> None:
    assert "input 'x'" in refusal(2, "infer", "echo", "[1, two]", "--address", address)


def test_models_shows_states_and_counts_and_a_broken_model_disturbs_no_other(
    address: str,
) -> None:
    headrace("infer", "echo", "[1, 2]", "[3, 4]", "--address", address)
    done = headrace("models", "--address", address, "--json")
    assert done.returncode == 0
    rows = {row["model"]: row for row in json.loads(done.stdout)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "broken": "UNAVAILABLE",
        "echo": "READY",
        "greeter": "READY",
    }
    assert "this model was never finished" in rows["broken"]["reason"]
    assert rows["echo"]["requests"] >= 1
    assert rows["echo"]["mean_batch_rows"] > 0
    assert rows["echo"]["mean_compute_ms"] > 0
    table = headrace("models", "--address", address).stdout
    assert all(word in table for word in ("broken", "UNAVAILABLE", "echo", "READY"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (("--version",), ""),
        (("token",), ""),
        (("models",), ""),
        (("models", "--json"), ""),
        (("models", "--json"), "1"),
        (QUICK_BENCH, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line(
    address: str, arguments: tuple[str, ...], unbuffered: str
) -> None:
    environment = {"PYTHONUNBUFFERED": unbuffered}
    done = redirected("> /dev/full", *at(address, arguments), environment=environment)
    assert done.returncode == 1
    assert done.stderr == "headrace: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        (("models",), "<&-"),
        (("models",), ">&-"),
        (("models",), "2>&-"),
        (("models", "--json"), "<&- >&- 2>&-"),
        (QUICK_BENCH, "<&- >&- 2>&-"),
    ],
)
def test_closed_streams_are_nothing_to_read_or_write(
    address: str, arguments: tuple[str, ...], closed: str
) -> None:
    done = redirected(closed, *at(address, arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.split())


def test_a_closed_standard_input_holds_no_json(address: str) -> None:
    done = redirected("<&-", *at(address, ("infer", "echo", "--json-input", "-")))
    assert done.returncode == 2
    assert done.stderr.startswith("headrace: -: expected JSON, got ''")
    assert done.stderr.count("\n") == 1


def test_errors_do_not_go_to_standard_output_where_there_is_no_other(address: str) -> None:
    done = redirected("2>&-", *at(address, ("infer", "nobody", "1")))
    assert (done.returncode, done.stdout) == (1, "")


def test_a_reader_that_has_enough_is_no_error(address: str) -> None:
    done = redirected("| true", *at(address, ("models", "--json")))
    assert (done.returncode, done.stderr) == (0, "")


# -- stopping -----------------------------------------------------------------------------------


def test_sigterm_finishes_what_was_admitted_and_exits_with_0(tmp_path: Path) -> None:
    with ServerProcess(write_models(tmp_path, patient=PATIENT)) as server:
        caller = subprocess.Popen(
            [*COMMAND, "infer", "patient", "1.5", "--address", server.grpc_address, "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        while "begun\n" not in server.log:
            time.sleep(0.02)
        assert server.stop() == 0
    output, _ = caller.communicate(timeout=TIMEOUT_S)
    assert json.loads(output) == {"slept": [[1.5]]}


class Terminal:
    """`headrace serve` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = os.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        )
        os.close(slave)
        self.shown = ""

    def read_until(self, text: str) -> None:
        """Read what is shown until it holds `text`."""
        while text not in self.shown:
            data = self._read()
            assert data, f"the terminal closed before it showed {text!r}:\n{self.shown}"

    def read_to_end(self) -> None:
        while self._read():
            pass
        os.close(self._master)

    def _read(self) -> bytes:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # Linux says so when the last process closes the terminal
            return b""
        self.shown += data.decode(errors="replace")
        return data


def test_a_terminal_shows_the_server_and_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    repository = write_models(tmp_path, patient=PATIENT)
    terminal = Terminal("serve", str(repository), "--grpc-port", "0", "--metrics-port", "0")
    terminal.read_until("Stop with Ctrl-C.")
    assert "seconds FP32 [1]" in terminal.shown
    assert "READY" in terminal.shown
    address = terminal.shown.partition("--address ")[2].split()[0].partition("\x1b")[0]
    caller = subprocess.Popen(
        [*COMMAND, "infer", "patient", "60", "--address", address],
        stderr=subprocess.PIPE,
        text=True,
    )
    terminal.read_until("begun")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("stopping: finishing what was admitted")
    time.sleep(ONE_SIGNAL_S)
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_to_end()
    assert terminal.process.wait(TIMEOUT_S) == 1
    assert "Traceback" not in terminal.shown
    _, errors = caller.communicate(timeout=TIMEOUT_S)
    assert (caller.returncode, errors.count("\n")) == (1, 1)

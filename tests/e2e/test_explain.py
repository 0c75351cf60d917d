"""`headrace explain` against a real server: text, JSON and a picture, and what can go wrong."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import headrace, headrace_without, refusal
from headrace import Client
from headrace_server.testing import ServerProcess
from written_models import write_model

pytestmark = pytest.mark.e2e

CALLERS = 8
REQUESTS = 80
PNG = b"\x89PNG\r\n\x1a\n"

SLEEP_S = 0.004
FIXED_COST = f"""
    import time
    import torch
    from headrace_server import Model, TensorSpec

    class FixedCost(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]
        max_batch_size = 16

        def forward(self, x):
            time.sleep({SLEEP_S})
            return x
"""
RAGGED = """
    import time
    import torch
    from headrace_server import Model, TensorSpec

    class Ragged(Model):
        inputs = [TensorSpec("x", "FP32", [-1], pad=0)]
        outputs = [TensorSpec("y", "FP32", [-1])]
        max_batch_size = 8

        def forward(self, x):
            time.sleep(0.002 + x.numel() * 1e-5)
            return x
"""
MODELS = {
    "timed": (FIXED_COST, ""),
    "learned": (FIXED_COST, ""),
    "ragged": (RAGGED, ""),
    "ruled": (FIXED_COST, "dynamic_batching { preferred_batch_size: [4] }"),
    "alone": (FIXED_COST, "max_batch_size: 1"),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("explained")
    for name, (source, config) in MODELS.items():
        write_model(repository, name, source, config)
    with ServerProcess(repository) as server:
        yield server.grpc_address


@pytest.fixture
def busy_address(address: str) -> str:
    """The same server, with a last minute to tell of."""
    with Client(address) as client, ThreadPoolExecutor(CALLERS) as callers:

        def call(number: int) -> None:
            client.infer("learned", {"x": np.zeros((1, 1), np.float32)})
            client.infer("ruled", {"x": np.zeros((1, 1), np.float32)})
            client.infer("ragged", {"x": np.zeros((1, (5, 20)[number % 2]), np.float32)})

        list(callers.map(call, range(REQUESTS)))
    return address


def explained(address: str, model: str) -> Any:
    done = headrace("explain", model, "--address", address, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_model_that_nobody_called_is_explained_by_what_was_timed(address: str) -> None:
    done = headrace("explain", "timed", "--version", "1", "--address", address)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(
        r"timed 1  Batching pays (up to about|all the way to) \d+ rows: "
        r"\d+\.\dx the work per second of single rows\.\n",
        done.stdout,
    )
    assert re.search(r"^ +1 +\d+(\.\d+)? +1\.00x *$", done.stdout, re.M), "the curve"
    assert re.search(r"^ +16 +\d+(\.\d+)? +\d+\.\d\dx *$", done.stdout, re.M)
    assert "enough rows" in done.stdout
    assert "Last minute  0 batches, 0 requests, 0 rows" in done.stdout
    (curve,) = explained(address, "timed")["plan"]["curves"]
    assert curve["rows"] == list(range(1, 17))
    # Sixteen rows take as long as one; a busy machine blurs that.
    assert curve["gains"][0] == 1.0
    assert curve["gains"][-1] > 4


def test_the_last_minute_is_told_in_full(busy_address: str) -> None:
    done = headrace("explain", "learned", "--address", busy_address)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"Last minute  \d+ batches, \d+ requests, \d+ rows", done.stdout)
    assert "left the queue because" in done.stdout
    assert re.search(r"expected over actual duration +\d", done.stdout)
    told = explained(busy_address, "learned")
    assert told["summary"].startswith("Batching ")
    minute = told["last_minute"]
    assert sum(minute["batch_rows"].values()) == sum(minute["dispatches"].values())
    rows = sum(int(n) * batches for n, batches in minute["batch_rows"].items())
    assert rows == minute["requests"] >= REQUESTS
    assert minute["compute_s"]["p5"] >= SLEEP_S
    assert minute["refusals"] == {}


def test_lengths_are_those_that_were_really_served(busy_address: str) -> None:
    curves = explained(busy_address, "ragged")["plan"]["curves"]
    lengths = [curve["length"] for curve in curves]
    assert lengths
    assert set(lengths) <= {5, 20}
    table = headrace("explain", "ragged", "--address", busy_address).stdout
    assert all(f"length {length}" in table for length in lengths)


def test_fixed_rules_have_no_curve_but_a_last_minute(busy_address: str) -> None:
    done = headrace("explain", "ruled", "--address", busy_address)
    assert done.returncode == 0
    assert "Fixed rules form the batches (dynamic_batching in config.pbtxt)" in done.stdout
    assert "gain" not in done.stdout
    told = explained(busy_address, "ruled")
    assert told["plan"] is None
    assert told["last_minute"]["requests"] >= REQUESTS


def test_where_batching_is_switched_off_it_says_so(address: str) -> None:
    assert "Batching is switched off" in headrace("explain", "alone", "--address", address).stdout


@pytest.mark.parametrize("model", ["timed", "learned", "ruled"])
def test_plot_writes_a_picture(address: str, tmp_path: Path, model: str) -> None:
    picture = tmp_path / "picture.png"
    done = headrace("explain", model, "--address", address, "--plot", str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    assert picture.read_bytes().startswith(PNG)
    assert done.stdout.startswith(model)


def test_a_picture_that_cannot_be_written_is_one_line(address: str, tmp_path: Path) -> None:
    picture = tmp_path / "missing" / "picture.png"
    line = refusal(1, "explain", "learned", "--address", address, "--plot", str(picture))
    assert f"cannot write {picture}: No such file or directory" in line
    line = refusal(2, "explain", "learned", "--address", address, "--plot", "picture.jpg")
    assert "expected --plot FILE that ends in .png, .svg, .pdf, got 'picture.jpg'" in line


def test_without_matplotlib_plot_says_in_one_line_what_to_install(address: str) -> None:
    arguments = ("explain", "learned", "--address", address)
    done = headrace_without("matplotlib", *arguments, "--plot", "picture.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "headrace: headrace explain --plot needs the plot extra (there is no module "
        "'matplotlib'): pip install 'headrace[plot]'\n"
    )
    assert headrace_without("matplotlib", *arguments).returncode == 0


def test_an_unknown_model_or_version_is_one_line(address: str) -> None:
    line = refusal(1, "explain", "nobody", "--address", address)
    assert "unknown model: 'nobody' is not found (NOT_FOUND, reason unknown_model)" in line
    line = refusal(1, "explain", "learned", "--version", "7", "--address", address)
    assert "unknown_version" in line


def test_where_no_server_is_it_says_so_in_one_line() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        line = refusal(1, "explain", "learned", "--address", address)
    assert f"no server answers at {address}" in line

"""An unmodified Triton client gets exactly what the model gives in-process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.digits.train import test_set as held_out_digits

from headrace_server.testing import ServerProcess

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
TRITON_PYTHON = HERE.parents[1] / ".venv-triton" / "bin" / "python"
SIZES = (1, 2, 3, 8, 17, 64)

needs_triton_client = pytest.mark.skipif(
    not TRITON_PYTHON.exists(), reason="make .venv-triton/installed first"
)


@needs_triton_client
def test_stock_triton_client_gets_the_models_own_answers_bit_for_bit(
    example_server: ServerProcess, example_repository: Path, tmp_path: Path
) -> None:
    images, _ = held_out_digits()
    model = torch.export.load(example_repository / "digits" / "1" / "model.pt2").module()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            expected = [
                model(torch.from_numpy(images[:size]))["probabilities"].numpy() for size in SIZES
            ]
    finally:
        torch.set_num_threads(threads)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "expected.npy", np.concatenate(expected))
    printed = run_there(
        *("tritonclient_digits.py", example_server.grpc_address),
        *(str(tmp_path / "images.npy"), str(tmp_path / "expected.npy")),
    )
    assert printed.count("largest absolute difference 0.0") == 2


@needs_triton_client
@pytest.mark.parametrize("fronts", ["1", "2"])
def test_streams_of_the_stock_triton_client_are_answered_in_order(
    serve: Callable[..., ServerProcess], fronts: str
) -> None:
    server = serve("--fronts", fronts, affine="instance_group { kind: KIND_CPU count: 2 }")
    printed = run_there("tritonclient_streams.py", server.grpc_address)
    assert printed.count("every answer in its place") == 2


@needs_triton_client
def test_the_stock_triton_client_loads_and_unloads_models(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("--model-control-mode", "explicit", affine="", slow="")
    printed = run_there("tritonclient_control.py", server.grpc_address)
    assert printed.count("every step in order") == 2


@needs_triton_client
def test_tensors_of_the_stock_triton_client_lie_in_shared_memory(
    sharing_server: ServerProcess,
) -> None:
    printed = run_there("tritonclient_shared_memory.py", sharing_server.grpc_address)
    assert printed.count("every answer in its region") == 3


@needs_triton_client
@pytest.mark.parametrize("fronts", [(), ("--fronts", "2")])
def test_the_stock_triton_client_is_served_over_http(
    serve: Callable[..., ServerProcess], fronts: tuple[str, ...]
) -> None:
    server = serve(
        *("--http-port", "0", "--model-control-mode", "explicit", "--load-model", "affine"),
        *(fronts or ("--allow-client-shm",)),
        affine="",
        letters="",
    )
    printed = run_there("tritonclient_http.py", server.http_address)
    assert printed.count("every step in order") == 2
    assert ("tensors in shared memory" in printed) is not bool(fronts)


def run_there(script: str, *arguments: str) -> str:
    """Run a script of this directory in the client's own environment; returns what it printed."""
    done = subprocess.run(
        [TRITON_PYTHON, HERE / script, *arguments], capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

"""The front process reads repositories without ever importing torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "headrace_server",
        "headrace_server.models.repository",
        "headrace_server.models.config_text",
        "headrace_server.models.batching",
        "headrace_server.models.completion",
        "headrace_server.models.signature",
        "headrace_server.models.model",
    ],
)
def test_front_safe_modules_leave_torch_alone(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_model_file_gets_its_names_from_the_package() -> None:
    from headrace_server import Model, ModelContext, TensorSpec

    assert Model.max_batch_size == 32
    assert TensorSpec("x", "FP32", [1, 2]).shape == (1, 2)
    assert ModelContext.__slots__

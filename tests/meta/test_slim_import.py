"""The SDK stays small: it brings neither torch nor the server with it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["torch", "headrace_server", "prometheus_client"])
def test_sdk_does_not_load(module: str) -> None:
    code = f"import headrace, headrace.aio, sys; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_exists() -> None:
    import headrace

    assert all(getattr(headrace, name) is not None for name in headrace.__all__)
    assert headrace.__version__.count(".") == 2

"""Runs the real command line as people and scripts do, and reads how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

COMMAND = (sys.executable, "-m", "headrace_server.cli")
TIMEOUT_S = 60.0


def headrace(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def redirected(
    redirections: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it with these redirections."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirections}', "sh", *COMMAND, *arguments],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def headrace_without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where a module is not installed."""
    program = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        f"sys.argv = {['headrace', *arguments]!r}\n"
        "from headrace_server.cli import main\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S
    )


def refusal(status: int, *arguments: str) -> str:
    """The one line that a refused command prints."""
    done = headrace(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("headrace: ")
    assert done.stderr.count("\n") == 1
    return done.stderr

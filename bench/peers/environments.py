"""An environment for each peer under `.venv-peers/`, at the versions of `constraints/`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
INSTALL_TIMEOUT_S = 420.0


class UnavailableError(Exception):
    """A peer cannot be had here; says in one line why."""


class Environment:
    """The virtual environment of one peer, apart from ours and from the others'.

    Args:
        name: of the folder and of the file of constraints.
        packages: what to install; the first one is the peer itself.
    """

    def __init__(self, name: str, packages: Sequence[str]) -> None:
        self._packages = packages
        self._constraints = HERE / "constraints" / f"{name}.txt"
        self.directory = ROOT / ".venv-peers" / name
        self.python = self.directory / "bin" / "python"

    @property
    def version(self) -> str:
        """The pinned version of the peer."""
        for line in self._constraints.read_text().splitlines():
            name, _, version = line.partition("==")
            if name == self._packages[0]:
                return version
        raise ValueError(f"expected {self._packages[0]} in {self._constraints}")

    def install(self) -> None:
        """Install it, unless what is there was installed from the same constraints.

        Raises:
            UnavailableError: pip cannot.
        """
        stamp, wanted = self.directory / "installed", self._constraints.read_text()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        quietly = ("install", "--quiet", "--disable-pip-version-check")
        pip: list[str | Path] = [self.python, "-m", "pip", *quietly]
        commands: tuple[Sequence[str | Path], ...] = (
            [sys.executable, "-m", "venv", "--clear", self.directory],
            [*pip, "--constraint", self._constraints, *self._packages],
        )
        for command in commands:
            try:
                done = subprocess.run(
                    command, check=False, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                raise UnavailableError(f"not installed in {INSTALL_TIMEOUT_S:.0f} s") from None
            if done.returncode:
                raise UnavailableError(f"not installed: {last_error(done.stderr)}")
        stamp.write_text(wanted)


def last_error(output: str) -> str:
    """What pip says last that is an error, or else no warning."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    others = [line for line in lines if not line.startswith("WARNING")]
    return (errors or others or ["pip did not say why"])[-1]

"""A server and everything it starts, as one process group that ends as one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.processes import usage

GRACE_S = 2.0
"""From SIGTERM to SIGKILL."""


class ProcessGroup:
    """Runs `argv` as the leader of a session of its own, output to the file `log`, until `stop`."""

    def __init__(
        self, argv: Sequence[str | Path], environment: Mapping[str, str], directory: Path
    ) -> None:
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the leader."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status of the leader, None while it runs."""
        return self._process.poll()

    def last_words(self, lines: int = 12) -> str:
        """The end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM to the leader, then SIGKILL to whoever is left, of the group or a descendant in
        a group of its own."""
        descendants = [] if self.status is not None else list(usage(self.pid).by_pid)
        if self.status is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        _kill_group(self.pid)
        self._process.wait()
        deadline_s = time.monotonic() + 1.0
        while (left := [pid for pid in descendants if _is_running(pid)]) and (
            time.monotonic() < deadline_s
        ):
            time.sleep(0.02)
        for pid in left:
            with suppress(ProcessLookupError):
                _kill_group(os.getpgid(pid))


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False

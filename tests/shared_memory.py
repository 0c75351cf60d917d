"""Shared memory as any client may make it: a file in /dev/shm."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY = Path("/dev/shm")


@contextmanager
def shared_file(contents: bytes) -> Iterator[Path]:
    """A file of its own with these contents; its name is its key."""
    file = DIRECTORY / f"headrace-test-{os.getpid()}-{secrets.token_hex(4)}"
    file.write_bytes(contents)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)

"""Finds the worker processes of a running server, for tests that kill them (Linux only)."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path


def workers_of(pid: int) -> list[int]:
    """The process ids of all workers of a server."""
    return [child for child in children_of(pid) if "worker_main" in command_of(child)]


def nursery_of(pid: int) -> int:
    """The process id of what forks a server's workers."""
    (nursery,) = (child for child in children_of(pid) if "nursery_main" in command_of(child))
    return nursery


def children_of(pid: int) -> list[int]:
    """The process ids of all children of a process."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
            children += [int(child) for child in (task / "children").read_text().split()]
    return children


def command_of(pid: int) -> str:
    """How a process was called; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descriptors_of(pid: int) -> Counter[str]:
    """What the open descriptors of a process are of: sockets, pipes, files and so on, by kind."""
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue  # closed meanwhile
        kinds[target.split(":[")[0]] += 1
    return kinds


def slabs_of(pid: int) -> int:
    """How many pieces of shared memory a process has mapped for what workers read and write."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("headrace-slab" in line for line in maps)

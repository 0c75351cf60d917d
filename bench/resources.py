"""What a running server holds: processes, memory, open files, slabs. From /proc: Linux only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

WORKER = "headrace_server.workers.worker_main"
NURSERY = "headrace_server.workers.nursery_main"
SLAB = "memfd:headrace-slab"
VANISHED = (FileNotFoundError, ProcessLookupError)
"""What reading about a process raises that has just ended."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the processes of one server hold at one moment.

    Attributes:
        front_bytes: resident memory of everything that is no worker, nor forks them.
        worker_bytes: of each worker, by the name it was given (`model/version#seat`).
        open_files: likewise.
        slabs: mappings of shared memory, likewise.
    """

    front_bytes: int
    worker_bytes: Mapping[str, int]
    open_files: int
    slabs: int


def holdings(front: int) -> Holdings:
    """Of the server whose front this is, and of its workers."""
    named = workers(front)
    fronts = [pid for pid in tree(front) if pid not in named and NURSERY not in _command(pid)]
    return Holdings(
        sum(map(resident_bytes, fronts)),
        {name: resident_bytes(pid) for pid, name in named.items()},
        sum(map(open_files, fronts)),
        sum(map(slabs, fronts)),
    )


def tree(root: int) -> list[int]:
    """The process and its direct and indirect children."""
    found = [root]
    for pid in found:
        with suppress(*VANISHED):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(*VANISHED):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found


def workers(front: int) -> dict[int, str]:
    """Process ids and names of the workers that live."""
    found = {}
    for pid in tree(front):
        arguments = _command(pid)
        if WORKER in arguments:
            found[pid] = arguments[-1]
    return found


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except VANISHED:
        return False


def resident_bytes(pid: int) -> int:
    """Resident memory, shared pages included; 0 once the process is gone."""
    with suppress(*VANISHED):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    return 0


def open_files(pid: int) -> int:
    """Descriptors of a process; 0 once it is gone."""
    with suppress(*VANISHED):
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return 0


def slabs(pid: int) -> int:
    """Mappings of slabs in a process; 0 once it is gone."""
    with suppress(*VANISHED):
        return Path(f"/proc/{pid}/maps").read_text().count(SLAB)
    return 0


def left_behind(temporary: Path) -> list[str]:
    """What lies in the directory for temporary files of its own that a server was given, and slabs
    with a name."""
    shared = Path("/dev/shm")
    named = shared.glob("*headrace-slab*") if shared.is_dir() else ()
    return sorted(str(path) for path in (*temporary.iterdir(), *named))


def middle(values: list[int]) -> float:
    """The median; 0 where there is nothing."""
    return median(values) if values else 0.0


def _command(pid: int) -> list[str]:
    with suppress(*VANISHED):
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    return []

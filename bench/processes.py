"""CPU time and memory of a process and its children, from the operating system's own books."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of CPU (user and system) used so far by a process tree, per process."""

    by_pid: dict[int, float]

    def since(self, earlier: Usage) -> float:
        """CPU seconds used between two readings, by processes alive at both."""
        return sum(used - earlier.by_pid.get(pid, 0.0) for pid, used in self.by_pid.items())


def usage(root: int) -> Usage:
    """What the process and its direct and indirect children have used. Linux only.

    Processes that end meanwhile are left out.
    """
    by_pid = {}
    for pid in _tree(root):
        with suppress(*GONE):
            by_pid[pid] = _cpu_s(pid)
    return Usage(by_pid)


def memory_bytes(root: int) -> int:
    """Resident memory of the same processes; pages that several have count once, in shares."""
    return sum(_proportional_bytes(pid) for pid in _tree(root))


def resident_bytes(pid: int) -> int:
    """Memory of one process that is in RAM, shared libraries included. Linux only."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def command_line(pid: int) -> str:
    """How one process was called. Linux only."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        with suppress(*GONE):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(*GONE):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _cpu_s(pid: int) -> float:
    # The command name may hold spaces; what follows its closing parenthesis does not.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _proportional_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"expected Pss in the memory map of process {pid}")

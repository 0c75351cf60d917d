"""What is freed stays for the next batch until it is given back: each in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator"
)

PROGRAM = """
import resource
from pathlib import Path
from headrace_server.memory import give_back, keep_what_is_freed

MIB = 1 << 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def pages_taken(nbytes):
    before = faults()
    b"1" * nbytes
    return faults() - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

if {keep}:
    keep_what_is_freed()
b"1" * MIB
before = resident()
taken = [pages_taken(96 * MIB) for _ in range(3)]
held = resident() - before
give_back()
print(*taken, held // MIB, (resident() - before) // MIB)
"""
"""Pages that are taken when 96 MiB are filled, three times; MiB held thereafter, and at the end."""


def run(*, keep: bool) -> tuple[int, ...]:
    command = [sys.executable, "-c", PROGRAM.replace("{keep}", str(keep))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return tuple(map(int, done.stdout.split()))


def test_memory_that_is_freed_is_used_again_without_asking_the_system() -> None:
    first, *others, held, after = run(keep=True)
    # 24,576 pages of 4 KiB; 48 where the system takes larger ones.
    assert first >= 48
    assert max(others) < 8
    assert held >= 95
    assert after < 8


def test_left_alone_it_is_asked_for_again_and_again() -> None:
    *taken, held, _ = run(keep=False)
    assert min(taken) >= 48
    assert held < 8

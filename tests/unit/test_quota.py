"""Which CPU quota counts, in both versions of control groups."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from headrace_server.quota import cpu_quota


def quota(directory: Path, membership: str, files: dict[str, str]) -> float:
    """What is read of such a `/proc/self/cgroup` and of such files below `/sys/fs/cgroup`."""
    for name, text in files.items():
        file = directory / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (directory / "membership").write_text(membership)
    return cpu_quota(directory / "cgroup", directory / "membership")


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        (
            "0::/a.slice/b.service\n",
            {
                "a.slice/cpu.max": "200000 100000\n",
                "a.slice/b.service/cpu.max": "800000 100000\n",
                "a.slice/c.service/cpu.max": "100000 100000\n",
            },
            2.0,
        ),
        # Seen from within a container that has no namespace for them: the path is the host's.
        ("0::/of/the/host\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (
            "4:cpuset:/x\n3:cpu,cpuacct:/x\n0::/\n",
            {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        (
            "3:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "nonsense\n"}, math.inf),
    ],
)
def test_the_least_limit_counts(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float
) -> None:
    assert quota(tmp_path, membership, files) == cores


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "neither") == math.inf


def test_this_machine_has_a_quota_that_makes_sense() -> None:
    assert cpu_quota() > 0

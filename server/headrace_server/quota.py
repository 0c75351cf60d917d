"""What the system lets this process have of its cores: a container's CPU quota."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """Seconds of CPU per second that all processes of the control group together may use; infinite
    where there is no limit, or no control groups (all but Linux).

    The least limit counts, of the process's own group and of those around it. In a container with a
    namespace of its own those around it are not seen, and need not be: its limit is at the top.

    Args:
        cgroups: where the groups' files are (cgroups(7), both versions).
        membership: which groups the process is in, as in `/proc/self/cgroup`.
    """
    least = math.inf
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                least = min(least, _least_of(cgroups, path))
            elif "cpu" in controllers.split(","):
                least = min(least, _least_of(cgroups / "cpu", path))
    return least


def _least_of(top: Path, path: str) -> float:
    group = top / path.lstrip("/")
    return min(_quota_of(group) for group in (group, *group.parents) if group.is_relative_to(top))


def _quota_of(group: Path) -> float:
    # Version 2 has both numbers in one file, "max" for none; version 1 has two files, -1 for none.
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text())
        period_us = int((group / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    return math.inf

"""How many threads a step may use: what the container's CPU limit leaves of the machine."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS) -> int:
    """Whole CPUs that this process may use, at least 1.

    The least of the CPUs it may be scheduled on and its cgroup's quota, rounded down: a thread
    more than the quota pays for is stopped in the middle of a step, and all others wait for it.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def _quota(cgroups: Path) -> float | None:
    try:
        limit, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    if limit == "max" or int(limit) <= 0:
        return None
    return int(limit) / int(period)

"""How many cores this process may use: affinity and container quota, which ONNX Runtime ignores."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def quota(root: Path = CGROUP) -> float | None:
    """Cores that the cgroup (v2, else v1) allows, or None without a limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 and period_us > 0 else None
    except (OSError, ValueError):
        return None


def usable_cores() -> int:
    """Cores of the affinity mask, bounded by the quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota()
    return max(1, cores if limit is None else min(cores, math.floor(limit)))


def threads_per_worker(threads: int, workers: int) -> int:
    """`threads` if set, else the usable cores shared among `workers` (at least 1)."""
    return threads or max(1, usable_cores() // workers)

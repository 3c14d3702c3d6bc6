"""Where the workers of one server keep the files that Prometheus metrics are summed from.

BentoML keeps them in one folder of its home and empties it whenever a server starts, so that a second server on the
machine would erase the counts of the first. Each server of ours has a folder of its own instead.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

FOLDER = "PALISADE_METRICS_DIR"
_PROMETHEUS = "PROMETHEUS_MULTIPROC_DIR"


def make_folder() -> None:
    """In the supervisor: make the folder, which workers find by an environment variable, and remove it at the end."""
    try:
        folder = tempfile.mkdtemp(prefix="palisade-metrics-")
    except OSError:
        return  # nothing can be written here: BentoML's own folder is used
    os.environ[FOLDER] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def use_folder() -> None:
    """In a worker, before any metric exists: write to the folder that the supervisor made."""
    folder = os.environ.get(FOLDER)
    if folder and _PROMETHEUS in os.environ:
        os.environ[_PROMETHEUS] = folder


def forget_dead_workers() -> None:
    """Drop the gauges of workers that are gone, as in-flight counts of a crashed one would stay for ever."""
    folder = os.environ.get(_PROMETHEUS)
    if not folder:
        return
    for file in Path(folder).glob("gauge_live*_*.db"):
        match = re.fullmatch(r"gauge_\w+?_(\d+)\.db", file.name)
        if match and not Path(f"/proc/{match[1]}").exists() and Path("/proc/self").exists():
            file.unlink(missing_ok=True)

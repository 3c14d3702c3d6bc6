"""Scans as processes of their own, on Ray and without it, for the tests that kill them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.gateway.server import ROOT

ACTOR = "ray::Worker"


class Scans:
    """Runs `palisade scan` with one thread a process; `folder` receives what hides a slow package from Ray.

    The test environment has `rfc3987_syntax`, which builds a grammar for seconds wherever jsonschema is imported, as in
    each of Ray's processes at their start.
    """

    def __init__(self, folder: Path, models: Path, *, nice: int = 0) -> None:
        hidden = folder / "hidden"
        hidden.mkdir(parents=True, exist_ok=True)
        (hidden / "rfc3987_syntax.py").write_text("raise ImportError\n")
        self.models, self._nice = models, nice
        path = os.pathsep.join([str(hidden), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = os.environ | {"PALISADE_THREADS": "1", "PYTHONPATH": path}

    def start(self, out: Path, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gateway.cli", "scan", *map(str, arguments)]
        command += ["--out", str(out), "-m", str(self.models)]
        nice = ["nice", "-n", str(self._nice)] if self._nice else []
        # Errors go to the terminal of the test: a pipe that nobody reads could fill.
        return subprocess.Popen([*nice, *command], env=self.environment, stdout=subprocess.DEVNULL, text=True)

    def run(self, out: Path, *arguments: object) -> int:
        return self.start(out, *arguments).wait(7200)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The actors' processes below the process that drives a scan."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(ACTOR):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_rows(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until the report has `count` lines; the process must not end before."""
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert process.poll() is None, f"the scan ended with {process.returncode} before it had {count} rows"
        time.sleep(0.05)


def kill_driver(process: subprocess.Popen[str]) -> None:
    """Kill the driver alone (SIGKILL); its workers must then end by themselves (agents of Ray take a minute or so)."""
    actors = workers(process)
    assert actors, "no worker runs"
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(actors, timeout=60)
    assert alive == []


def rows_by_path(out: Path) -> dict[str, dict[str, Any]]:
    """The report's rows; fails where an image has two."""
    rows: dict[str, dict[str, Any]] = {}
    for line in out.read_text("utf-8").splitlines():
        row = json.loads(line)
        assert row["path"] not in rows, f"{row['path']} has two rows"
        rows[row["path"]] = row
    return rows

"""`make test`: pytest with a process for each core, and a name for the test in which the interpreter crashed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway.core.cores import usable_cores

# Names the file in which conftest.py notes each test that starts.
NOW = "PALISADE_TEST_NOW"
_OWN_WAY = ("-n", "--numprocesses", "--dist", "--pdb", "-s", "no:xdist")
_STOPPED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parallel(arguments: list[str], cores: int) -> list[str]:
    """Options of pytest-xdist for `cores`; none on a single core, or where `arguments` have their own.

    Tests of one file stay in one process and in order: they share servers and trained networks. Files keep their
    order: pytest-xdist would leave those of few tests to the end, which are the longest. A file whose test
    crashes its process is begun anew by another one, which crashes as well, so that a second crash ends the run.
    """
    if cores < 2 or any(argument.startswith(_OWN_WAY) for argument in arguments):
        return []
    return ["-n", str(cores), "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "1"]


def remedy(test: str, what: str) -> str:
    """What to do when `test` crashed the interpreter."""
    return (
        f"{test}: the interpreter crashed ({what}), in a library and not in Python. Libraries choose code by the "
        "processor: run the test without its widest instructions,\n"
        f"  ONEDNN_MAX_CPU_ISA=AVX2 make test ARGS='{test}'\n"
        "and report it, with what this prints, whether it passes so, and the output of lscpu."
    )


def main(arguments: list[str]) -> int:
    """Run pytest; the exit code is its own, or 128 and the number of the signal that ended it, as a shell has it."""
    with tempfile.TemporaryDirectory(prefix="palisade-test-") as folder:
        now = Path(folder) / "now"
        command = [sys.executable, "-m", "pytest", *parallel(arguments, usable_cores()), *arguments]
        # Ctrl-C reaches pytest as well, which ends in its own way; an ignored signal would be inherited.
        signal.signal(signal.SIGINT, lambda *_: None)
        code = subprocess.Popen(command, env=os.environ | {NOW: str(now)}).wait()
        if code >= 0:
            return code
        if -code not in _STOPPED:
            test = now.read_text("utf-8") if now.exists() else "before the first test"
            sys.stderr.write(f"\n{remedy(test, signal.Signals(-code).name)}\n")
        return 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`make test` itself: how many processes, and what it says of a test that crashes the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.server import ROOT
from tests.run import parallel

CRASH = """
import os


def test_sound() -> None:
    pass


def test_crash() -> None:
    os.kill(os.getpid(), {signal})
"""


@pytest.mark.parametrize(
    ("arguments", "cores", "processes"),
    [
        ([], 1, None),
        ([], 2, "2"),
        (["-k", "decode"], 8, "8"),
        (["-n0"], 8, None),
        (["tests", "-p", "no:xdist"], 8, None),
    ],
)
def test_a_process_for_each_core_unless_the_user_chooses(
    arguments: list[str], cores: int, processes: str | None
) -> None:
    options = parallel(arguments, cores)
    assert (options[options.index("-n") + 1] if options else None) == processes


@pytest.mark.parametrize(("signal", "said"), [("SIGSEGV", True), ("SIGABRT", True), ("SIGTERM", False)])
def test_a_crash_names_its_test(tmp_path: Path, signal: str, said: bool) -> None:
    import signal as signals

    number = signals.Signals[signal].value
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_runtest_logstart as pytest_runtest_logstart"
    )
    (tmp_path / "test_it.py").write_text(CRASH.format(signal=number))
    (tmp_path / "pytest.ini").write_text("[pytest]")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.run",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            f"--rootdir={tmp_path}",
            tmp_path,
        ],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 128 + number
    assert (f"test_it.py::test_crash: the interpreter crashed ({signal})" in done.stderr) is said

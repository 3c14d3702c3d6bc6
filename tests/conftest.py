"""For every test: a home of its own, none of the user's settings, no telemetry; and a crash that names its test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import NO_TELEMETRY
from gateway.core.cores import usable_cores
from tests.run import NOW, remedy

# Those by which `make` and people steer the tests themselves.
_OF_TESTS = {"PALISADE_FUZZ_CASES", "PALISADE_LOAD_SECONDS", "PALISADE_CHROMIUM", "PALISADE_SCREENSHOTS", NOW}
_SETTINGS = ("PALISADE_", "BENTOML_", "OTEL_", "XDG_", "PROMETHEUS_")
# How wide and colourful a terminal is, and by which proxy even the loopback would be reached.
_OF_THE_SHELL = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
_OF_THE_SHELL |= {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}


def _is_outside(name: str) -> bool:
    return (name.startswith(_SETTINGS) and name not in _OF_TESTS) or name.upper() in _OF_THE_SHELL


# Before any test module is imported, and with it what reads the environment at import.
for _name in filter(_is_outside, list(os.environ)):
    del os.environ[_name]
os.environ.update(NO_TELEMETRY)
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Or each process would start as many threads as there are cores; torch reads it when it is imported.
    _threads = max(1, usable_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written to, or found in, the home folder of the user who runs the tests; and no telemetry in this."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        yield
    assert not [*home.rglob("*onnxruntime*"), *home.rglob("deviceid")], "ONNX Runtime keeps telemetry"


def pytest_runtest_logstart(nodeid: str) -> None:
    if NOW in os.environ:
        Path(os.environ[NOW]).write_text(nodeid, "utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: Any) -> None:
    """Of pytest-xdist: a process ended in the test `crashitem`, which is reported as failed."""
    report.longrepr = f"{report.longrepr}\n{remedy(crashitem, 'see the traceback of faulthandler')}"

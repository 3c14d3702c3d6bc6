"""Results as JSON that state where and when they were measured."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from gateway.core.cores import usable_cores


def record(path: Path, what: str, figures: dict[str, Any]) -> None:
    """Write `figures` under the date, the command and the device that they were measured on."""
    report = {"what": what, **origin(), **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def origin() -> dict[str, Any]:
    """Date (UTC), command, device and versions of this run."""
    module = sys.modules["__main__"].__spec__
    name = module.name if module is not None else Path(sys.argv[0]).name
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", name, *map(_told, sys.argv[1:])]),
        "device": device(),
        "versions": {"python": platform.python_version(), "onnxruntime": str(onnxruntime.__version__)}
        | {name: version(name) for name in ("bentoml", "numpy")},
    }


def _told(argument: str) -> str:
    """An argument without this machine's folders: the last two parts of an absolute path."""
    path = Path(argument)
    return "/".join(path.parts[-2:]) if path.is_absolute() else argument


def device() -> dict[str, Any]:
    """The processor, the cores that this process may use, and the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return {"cpu": name, "cores_present": os.cpu_count(), "cores_usable": usable_cores(), "system": platform.system()}

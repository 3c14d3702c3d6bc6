"""Reading what deploy/ holds."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SETTING = r"\bPALISADE_[A-Z_]+\b"


def load(*path: str) -> Any:
    """One YAML document below deploy/."""
    return yaml.safe_load(DEPLOY.joinpath(*path).read_text("utf-8"))


def script(*path: str) -> ModuleType:
    """A script below deploy/, which is no package, as a module."""
    file = DEPLOY.joinpath(*path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    files = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    return [
        rule for file in files for group in load("prometheus", "rules", file.name)["groups"] for rule in group["rules"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}

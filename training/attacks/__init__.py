"""Attacks: each returns perturbed images inside its budget and inside [0, 1].

One attack is one module; `attacks.pgd` is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

MODULES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def __getattr__(name: str) -> ModuleType:
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Palisade's offline half: harden a classifier, calibrate its defence, attack it and export it as a bundle.

The Python interface (docs/python.md): `wrap`, `harden`, `attacks`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gateway as gateway  # switches the telemetry of ONNX Runtime off before it is imported

if TYPE_CHECKING:
    from training import attacks
    from training.bundling.wrap import harden, wrap

__all__ = ["attacks", "harden", "wrap"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `import training` alone does not load torch.
    if name in ("harden", "wrap"):
        return getattr(importlib.import_module("training.bundling.wrap"), name)
    if name == "attacks":
        return importlib.import_module("training.attacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

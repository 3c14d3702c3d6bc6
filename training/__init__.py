"""Palisade's offline half: harden a classifier, calibrate its defence, attack it and export it as a bundle.

The Python interface (docs/python.md): `wrap`, `harden`, `attacks`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import gateway as gateway  # switches the telemetry of ONNX Runtime off before it is imported

if TYPE_CHECKING:
    from training import attacks
    from training.bundling.wrap import harden, wrap

__all__ = ["attacks", "harden", "wrap"]

# The threads of GNU's OpenMP, which torch brings, wait for each other by spinning, by default for milliseconds. Two
# trainings on the same two cores are then eight times slower than with this short wait; one alone is as fast. Read when
# torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `import training` alone does not load torch.
    if name in ("harden", "wrap"):
        return getattr(importlib.import_module("training.bundling.wrap"), name)
    if name == "attacks":
        return importlib.import_module("training.attacks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Palisade's online half: decode, defend, explain and flag images behind an endpoint. Never imports torch.

The Python interface (docs/python.md): `load_pipeline`, `load_bundle`, `Pipeline`, `Decision`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.core.decision import Decision
    from gateway.core.loading import Bundle, load_bundle
    from gateway.core.pipeline import Pipeline
    from gateway.opening import load_pipeline

__all__ = ["Bundle", "Decision", "Pipeline", "__version__", "load_bundle", "load_pipeline"]
__version__ = "0.1.0"

# Nothing is sent anywhere. The packages decide when they are imported, so this stands before any import of them, in
# every process; whatever the variables were before, since BentoML accepts only this spelling of no.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "BENTOML_DO_NOT_TRACK": "True"}
# Ray is in no deployment, but where `palisade scan --ray` is used.
NO_RAY_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}
os.environ.update(NO_TELEMETRY | NO_RAY_TELEMETRY)

# Imported when first asked for: `import gateway` alone loads neither NumPy nor ONNX Runtime.
_HOMES = {
    "Bundle": "gateway.core.loading",
    "load_bundle": "gateway.core.loading",
    "load_pipeline": "gateway.opening",
    "Decision": "gateway.core.pipeline",
    "Pipeline": "gateway.core.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

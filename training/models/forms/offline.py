"""Optional packages that could reach a hub, imported so that they do not."""

from __future__ import annotations

import importlib
import os
from typing import Any

from training.errors import TrainingError

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def optional(name: str, wanted_for: str) -> Any:
    """The package `name`, told to stay off the network; `TrainingError` says how it is installed."""
    os.environ.update(OFFLINE)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise TrainingError(f"{wanted_for} needs the package {name}: pip install 'palisade-gateway[models]'") from None

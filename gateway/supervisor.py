"""BentoML's supervisor process, so that it replaces a worker that died soon, in containers too."""

from __future__ import annotations

import os
from typing import Any

from bentoml._internal.utils import circus

CHECK_SECONDS = 1.0


class _Arbiter(circus.Arbiter):  # type: ignore[misc]
    """Looks after the workers every second; BentoML's does every ten."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "check_delay": CHECK_SECONDS})


def watch_closely() -> None:
    """In the supervisor, before it starts workers."""
    circus.Arbiter = _Arbiter
    # In its containers BentoML leaves a dead worker to the orchestrator, which sees nothing as long as another lives.
    os.environ.pop("BENTOML_CONTAINERIZED", None)

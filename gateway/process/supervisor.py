"""BentoML's supervisor process: it replaces a worker that died soon, and when told to stop it stops listening."""

from __future__ import annotations

import os
from typing import Any

from bentoml._internal.utils import circus
from circus.exc import ConflictError  # type: ignore[import-untyped]

CHECK_SECONDS = 1.0
_AGAIN_SECONDS = 0.1


class _Arbiter(circus.Arbiter):  # type: ignore[misc]
    """Looks after the workers every second; BentoML's does every ten."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "check_delay": CHECK_SECONDS})

    def manage_watchers(self) -> Any:
        try:
            return super().manage_watchers()
        except ConflictError:  # still at it
            return None

    def stop(self) -> Any:
        try:
            stopping = super().stop()
        except ConflictError:  # a worker is being replaced right now; the signal would be lost
            self.loop.call_later(_AGAIN_SECONDS, self.stop)
            return None
        # New connections are refused while workers finish, in place of waiting for nobody.
        self.sockets.close_all()
        return stopping


def watch_closely() -> None:
    """In the supervisor, before it starts workers."""
    circus.Arbiter = _Arbiter
    # In its containers BentoML leaves a dead worker to the orchestrator, which sees nothing as long as another lives.
    os.environ.pop("BENTOML_CONTAINERIZED", None)

"""BentoML's supervisor process: it replaces workers that die, within bounds, and stops listening when it is to stop."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from bentoml._internal.utils import circus
from circus.exc import ConflictError  # type: ignore[import-untyped]
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING  # type: ignore[import-untyped]

from gateway.errors import StoreUnavailable
from gateway.versions.rollout import complete, living_workers
from gateway.versions.shared_state import FOLDER, Store

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
# Starts of workers in vain, for each worker that there should be, after which the server ends.
TRIES = 4
_AGAIN_SECONDS = 0.1
_ENDED = (DEAD_OR_ZOMBIE, UNEXISTING)


class _Arbiter(circus.Arbiter):  # type: ignore[misc]
    """Looks after the workers every second; BentoML's does every ten."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "check_delay": CHECK_SECONDS})
        self._starts = 0
        self._served = self._failed = False
        self._store = Store(Path(os.environ[FOLDER]))
        for watcher in self.watchers:
            watcher.hooks["after_spawn"] = self._count

    def start(self, cb: Any = None) -> None:
        super().start(cb)
        if self._failed:
            raise SystemExit(1)

    def manage_watchers(self) -> Any:
        if self._hopeless():
            log.critical(
                "palisade cannot start: %d workers in turn ended before they could answer; the lines above say why",
                self._starts,
            )
            self._failed = True
            return self.stop()
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

    def _count(self, **_: Any) -> bool:
        """Circus's hook, after a worker was started."""
        self._starts += 1
        return True

    def _notice_ready(self) -> None:
        """Count from zero once a worker is ready; from then on a replacement keeps nobody waiting."""
        try:
            if any(worker.ready for worker in living_workers(self._store)):
                if self._served or self._starts > self._wanted():
                    complete(self._store)
                self._served, self._starts = True, 0
        except StoreUnavailable:  # which it has logged
            self._starts = 0

    def _hopeless(self) -> bool:
        """Whether a worker has ended, and workers were started again and again since one was last ready."""
        if self._starts:
            self._notice_ready()
        if not self._starts or self._starts < TRIES * self._wanted():
            return False
        living = [p for watcher in self.watchers for p in watcher.processes.values() if p.status not in _ENDED]
        return len(living) < self._wanted()

    def _wanted(self) -> int:
        return sum(watcher.numprocesses for watcher in self.watchers)


def watch_closely() -> None:
    """In the supervisor, before it starts workers."""
    circus.Arbiter = _Arbiter
    # In its containers BentoML leaves a dead worker to the orchestrator, which sees nothing as long as another lives.
    os.environ.pop("BENTOML_CONTAINERIZED", None)

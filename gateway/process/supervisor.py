"""BentoML's supervisor process: it replaces workers that die, within bounds, and stops listening on shutdown."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from gateway.bento_compat import arbiter, conflict_error, ended_states, replace_arbiter
from gateway.errors import StoreUnavailable
from gateway.versions.rollout import complete, living_workers
from gateway.versions.shared_state import FOLDER, Store

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
# The server ends after this many starts for each worker, if none of them became ready.
TRIES = 4
_AGAIN_SECONDS = 0.1
_ENDED = ended_states()
_Base: Any = arbiter()
ConflictError = conflict_error()


class _Arbiter(_Base):  # type: ignore[misc]
    """Checks the workers every second; BentoML's does every ten."""

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
                "palisade cannot start: %d workers in turn ended before they could answer; the lines above show why",
                self._starts,
            )
            self._failed = True
            return self.stop()
        try:
            return super().manage_watchers()
        except ConflictError:  # the last check still runs
            return None

    def stop(self) -> Any:
        try:
            stopping = super().stop()
        except ConflictError:  # a worker is being replaced: the signal would be lost, so stop a moment later
            self.loop.call_later(_AGAIN_SECONDS, self.stop)
            return None
        # While workers finish, new connections are refused: nobody would accept them.
        self.sockets.close_all()
        return stopping

    def _count(self, **_: Any) -> bool:
        """Circus calls this hook after it has started a worker."""
        self._starts += 1
        return True

    def _notice_ready(self) -> None:
        """Count from zero once a worker is ready; from then on the server stays ready while a worker is replaced."""
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
    """Make the supervisor, before it starts workers, use `_Arbiter`."""
    replace_arbiter(_Arbiter)

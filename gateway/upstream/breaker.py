"""A circuit breaker: after several failures in a row the server is left alone for a while, and then tried once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Closed, until `failures` calls in a row have failed; then open for `pause` seconds; then one call is let through.

    That call's success closes it, its failure opens it again. Used from several threads.
    """

    def __init__(self, *, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed = failures
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._open_until: float | None = None
        self._trying = False

    @property
    def state(self) -> State:
        """`half_open` once a trial call may be, or is being, made."""
        with self._lock:
            if self._open_until is None:
                return "closed"
            return "half_open" if self._trying or self._clock() >= self._open_until else "open"

    @property
    def wait(self) -> float:
        """Seconds until the next call is let through; 0 where one is now."""
        with self._lock:
            return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    @property
    def at_limit(self) -> bool:
        """Whether one failure more opens it."""
        with self._lock:
            return self._trying or (self._open_until is None and self._failed + 1 >= self._allowed)

    def admit(self) -> bool:
        """Whether a call may be made now; if so, `succeeded` or `failed` must follow."""
        with self._lock:
            if self._open_until is None:
                return True
            if self._trying or self._clock() < self._open_until:
                return False
            self._trying = True
            return True

    def succeeded(self) -> None:
        """The last admitted call was answered."""
        with self._lock:
            self._failed, self._open_until, self._trying = 0, None, False

    def failed(self) -> bool:
        """The last admitted call was not, or not soundly, answered; whether that opens the breaker (again)."""
        with self._lock:
            self._failed += 1
            opens = self._trying or self._failed >= self._allowed
            if opens:
                self._open_until = self._clock() + self._pause
            self._trying = False
            return opens

"""A bound on the seconds that a source may take, whatever its packages wait for.

A timeout of a connection starts again with every byte that comes, so that a source which sends one now and then would
keep a gateway from starting. What a source does is done by a thread of its own, which nobody waits for at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import TIMEOUT_MAX, Event, Thread
from typing import TypeVar

from gateway.errors import PullTimeout
from gateway.pulling.sources import Source

T = TypeVar("T")
_AHEAD = 4
_LOOK = 0.2
"""Seconds between two looks of a thread at whether anybody still wants what it has."""


class Hurry:
    """From now on `seconds` for all that is asked of it together; then it raises `PullTimeout`."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url, self._seconds, self._ends = url, seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; raises `PullTimeout` if none are."""
        left = self._ends - time.monotonic()
        if not left > 0:
            raise PullTimeout(f"{self._url}: not fetched in {self._seconds:g} s")
        return min(left, TIMEOUT_MAX)

    def result(self, of: Callable[[], T]) -> T:
        """What `of` returns or raises."""
        return next(self.pieces(lambda: iter((of(),))))

    def pieces(self, of: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What the iterator that `of` returns yields and raises."""
        queue: Queue[tuple[T | None, BaseException | None]] = Queue(_AHEAD)
        unwanted = Event()

        def offer(piece: T | None, error: BaseException | None = None) -> None:
            while not unwanted.is_set():
                with suppress(Full):
                    queue.put((piece, error), timeout=_LOOK)
                    return

        def read() -> None:
            try:
                for piece in of():
                    offer(piece)
                    if unwanted.is_set():
                        return
            except BaseException as error:  # noqa: BLE001 (raised where it is awaited)
                offer(None, error)
            else:
                offer(None, StopIteration())

        Thread(target=read, name="pull", daemon=True).start()
        try:
            while True:
                try:
                    piece, error = queue.get(timeout=self.left)
                except Empty:
                    continue
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield piece  # type: ignore[misc]  # a piece where there is no error
        finally:
            unwanted.set()


class Hurried:
    """`source` as long as the `hurry` lasts."""

    def __init__(self, source: Source, hurry: Hurry) -> None:
        self._source, self._hurry = source, hurry

    def open(self, name: str) -> Iterator[bytes]:
        """As `Source.open`."""
        return self._hurry.pieces(lambda: self._source.open(name))

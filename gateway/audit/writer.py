"""From the event loop to the spool: a thread that writes, so that a slow or hung disk never stops the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from gateway import metrics
from gateway.audit.event import Record
from gateway.audit.spool import Spool, SpoolFull

log = logging.getLogger(__name__)

WAITING = 256
"""Records that may wait for the disk; beyond it they are given up."""
PATIENCE = 0.5
"""Seconds that an answer waits for its record; after it the answer goes out and the record is given up."""


class _Entry:
    """A record on its way: taken by the thread or given up by the loop, whichever comes first."""

    def __init__(self, make: Callable[[], Record], done: asyncio.Future[bool]) -> None:
        self.make: Callable[[], Record] | None = make
        self.finished = False
        self.loop = done.get_loop()
        self.done = done

    def finish(self, *, spooled: bool) -> None:
        def settle() -> None:
            if not self.done.done():
                self.done.set_result(spooled)

        with contextlib.suppress(RuntimeError):  # the loop has ended, nobody waits
            self.loop.call_soon_threadsafe(settle)


class SpoolWriter:
    """Appends records to a spool, each counted once: spooled, dropped_spool_full, failed or unspooled."""

    def __init__(self, spool: Spool, *, waiting: int = WAITING, patience: float = PATIENCE) -> None:
        self._spool = spool
        self._patience = patience
        self._queue: queue.Queue[_Entry | None] = queue.Queue(waiting)
        self._mutex = threading.Lock()
        self._stalled = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="palisade-spool", daemon=True)
        self._thread.start()

    async def write(self, make: Callable[[], Record]) -> bool:
        """Make a record in the thread and append it; True once it is in the spool, False if it is not (yet).

        Takes at most `patience` seconds, and none while the disk has not answered an earlier record for that long.
        """
        entry = _Entry(make, asyncio.get_running_loop().create_future())
        try:
            if self._stalled or self._closed:
                raise queue.Full
            self._queue.put_nowait(entry)
        except queue.Full:
            _count("unspooled")
            return False
        await asyncio.wait([entry.done], timeout=self._patience)
        if not entry.done.done():
            self._give_up(entry)
            return False
        return entry.done.result()

    def close(self, seconds: float = 2.0) -> bool:
        """Write what waits, for at most `seconds`; whether that was enough."""
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _give_up(self, entry: _Entry) -> None:
        with self._mutex:
            if entry.finished:
                return
            self._stalled = True
            if entry.make is not None:
                entry.make = None
                _count("unspooled")
            # Else it is being written: it is counted when that ends, and may be kept yet.

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            with self._mutex:
                make, entry.make = entry.make, None
            result = None if make is None else self._append(make)
            with self._mutex:
                entry.finished = True
                self._stalled = False
            if result is not None:
                _count(result)
                entry.finish(spooled=result == "spooled")

    def _append(self, make: Callable[[], Record]) -> str:
        try:
            if not self._spool.append(make()):
                metrics.audit_pictures_dropped_total.inc()
        except SpoolFull:
            return "dropped_spool_full"
        except OSError as error:
            log.warning("an audit event could not be spooled: %s", error)
            return "failed"
        except Exception:
            log.exception("an audit event could not be made")
            return "failed"
        return "spooled"


def _count(result: str) -> None:
    metrics.audit_events_total.labels(result).inc()

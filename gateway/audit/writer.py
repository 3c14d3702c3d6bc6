"""From the event loop to the spool: a thread that writes, so that a slow or hung disk never stops the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from gateway.audit.event import Record
from gateway.audit.spool import Spool, SpoolFull
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

WAITING = 256
"""Records that may wait for the disk; beyond it they are given up."""
WAITING_BYTES = 64 << 20
"""Bytes of images that may wait with them."""
PATIENCE = 0.5
"""Seconds that an answer waits for its record; after it the answer goes out first."""


@dataclass(frozen=True)
class _Entry:
    make: Callable[[], Record]
    size: int
    done: asyncio.Future[bool]

    def finish(self, *, spooled: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, nobody waits
            self.done.get_loop().call_soon_threadsafe(self._settle, spooled)

    def _settle(self, spooled: bool) -> None:  # noqa: FBT001
        if not self.done.done():
            self.done.set_result(spooled)


class SpoolWriter:
    """Appends records to a spool, each counted once: spooled, dropped_spool_full, failed, or unspooled (given up)."""

    def __init__(self, spool: Spool, *, waiting: int = WAITING, patience: float = PATIENCE) -> None:
        self._spool = spool
        self._waiting = waiting
        self._patience = patience
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._entries = self._bytes = 0
        self._stalled = False
        self._failing = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="palisade-spool", daemon=True)
        self._thread.start()

    async def write(self, make: Callable[[], Record], *, size: int = 0) -> bool:
        """Make a record in the thread and append it; True once it is in the spool, False if it is not (yet).

        `size` is what the record holds in memory until then, in bytes. Takes at most `patience` seconds, and none while
        the disk has not answered for that long; records that wait then are written when it answers again.
        """
        entry = _Entry(make, size, asyncio.get_running_loop().create_future())
        with self._mutex:
            full = self._entries >= self._waiting or (self._entries > 0 and self._bytes + size > WAITING_BYTES)
            if full or self._closed:
                _count("unspooled")
                return False
            self._entries += 1
            self._bytes += size
            stalled = self._stalled
            self._queue.put(entry)
        if not stalled:
            await asyncio.wait([entry.done], timeout=self._patience)
        if entry.done.done():
            return entry.done.result()
        metrics.audit_late_total.inc()
        with self._mutex:
            self._stalled = self._entries > 0
        return False

    def close(self, seconds: float = 2.0) -> bool:
        """Write what waits, for at most `seconds`; whether that was enough."""
        with self._mutex:
            self._closed = True
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            result = self._append(entry.make)
            with self._mutex:
                self._entries -= 1
                self._bytes -= entry.size
                self._stalled = False
            _count(result)
            entry.finish(spooled=result == "spooled")

    def _append(self, make: Callable[[], Record]) -> str:
        try:
            if not self._spool.append(make()):
                metrics.audit_pictures_dropped_total.inc()
        except SpoolFull:
            return "dropped_spool_full"
        except OSError as error:
            if not self._failing:
                log.warning("audit: events are lost, they cannot be spooled: %s", error)
            self._failing = True
            return "failed"
        except Exception:
            log.exception("an audit event could not be made")
            return "failed"
        if self._failing:
            log.info("audit: events are spooled again")
        self._failing = False
        return "spooled"


def _count(result: str) -> None:
    metrics.audit_events_total.labels(result).inc()

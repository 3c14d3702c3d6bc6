"""From the spool to the store: a thread that moves what waits, adopts what dead workers left, and keeps the limits."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import exc

from gateway.audit.event import Record
from gateway.audit.spool import Spool, payloads, unpack
from gateway.audit.store import AuditStore, Limits
from gateway.errors import AuditUnavailable, ConfigError
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between moves."""
RETENTION_SECONDS = 10.0
"""Seconds between two runs of retention, over all processes that share the store."""
_BATCH = 100


class Mover:
    """Moves one worker's segments until it is closed; whatever fails is tried again, and nothing is lost meanwhile."""

    def __init__(self, spool: Spool, store: AuditStore, limits: Limits, *, interval: float = INTERVAL) -> None:
        self._spool = spool
        self._store = store
        self._limits = limits
        self._interval = interval
        self._prepared = False
        self._segment: Path | None = None
        self._records: list[Record] = []
        self._retain_at = 0.0
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="palisade-audit", daemon=True)

    def start(self, *, prepared: bool) -> None:
        """Begin; `prepared` when the store's tables were checked already."""
        self._prepared = prepared
        self._thread.start()

    def close(self, seconds: float = 5.0) -> bool:
        """Move what waits once more, for at most `seconds`; whether the thread has ended."""
        self._stop.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._cycle()
        self._cycle()

    def _cycle(self) -> None:
        try:
            self._spool.measure()
            self._show()
            if self._spool.adopt():
                log.info("audit: adopted events of a worker that is gone")
            if not self._spool.sealed():
                self._spool.seal()
            self._spool.sync()
            self._move()
            self._retain()
        except (AuditUnavailable, ConfigError) as error:
            cause = error.__cause__ or error
            self._note(f"audit: events wait in the spool: {' '.join(str(cause).split())[:300]}")
        except OSError as error:
            self._note(f"audit: the spool cannot be read: {error}")
        except Exception:
            log.exception("audit: moving events failed")
        else:
            self._note("")
        with contextlib.suppress(OSError):  # which was noted: the next cycle looks again
            self._show()

    def _move(self) -> None:
        if not self._prepared:
            self._store.prepare()
            self._prepared = True
        # The segment during which the store failed goes first, so that its stored records are not offered again.
        for segment in sorted(self._spool.sealed(), key=lambda path: path != self._segment):
            if segment != self._segment:
                self._segment, self._records = segment, self._read(segment)
            while self._records:
                self._insert(_BATCH)
            self._spool.remove(segment)
            self._show()

    def _retain(self) -> None:
        if time.monotonic() < self._retain_at:
            return
        self._retain_at = time.monotonic() + RETENTION_SECONDS
        now = datetime.now(UTC)
        if self._store.lease("retention", seconds=RETENTION_SECONDS, now=now):
            self._store.retain(self._limits, now=now)

    def _read(self, segment: Path) -> list[Record]:
        records = []
        for payload in payloads(segment.read_bytes()):
            if payload is None:
                metrics.audit_spool_damaged_total.inc()
                continue
            try:
                records.append(unpack(payload))
            except (ValueError, KeyError, TypeError) as error:
                log.error("audit: an event of another version was refused: %s", str(error)[:300])  # noqa: TRY400
                _count("refused", 1)
        return records

    def _insert(self, n: int) -> None:
        """Move the first n of the segment's records that wait; one by one if the store refuses any of them."""
        batch = self._records[:n]
        try:
            new = self._store.insert(batch)
        except (exc.IntegrityError, exc.DataError) as error:
            if len(batch) > 1:
                for _ in batch:
                    self._insert(1)
                return
            log.error("audit: the store refused event %s: %s", batch[0].event.id, error.orig)  # noqa: TRY400
            _count("refused", 1)
        else:
            _count("stored", new)
            _count("duplicate", len(batch) - new)
        del self._records[:n]

    def _note(self, trouble: str) -> None:
        """Log a failure once when it begins, and its end."""
        if trouble and not self._trouble:
            log.warning("%s", trouble)
        elif self._trouble and not trouble:
            log.info("audit: events are stored again")
        self._trouble = trouble

    def _show(self) -> None:
        metrics.audit_spool_bytes.set(self._spool.own_bytes)
        metrics.audit_spool_age_seconds.set(self._spool.age)


def _count(result: str, events: int) -> None:
    if events:
        metrics.audit_events_total.labels(result).inc(events)

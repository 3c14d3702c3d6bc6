"""The audit trail as the rest of the gateway sees it: start, record, close."""

from __future__ import annotations

import logging
import os
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.access.auth import Caller
from gateway.audit.database import sqlite_url
from gateway.audit.event import Subject, kind_of
from gateway.audit.mover import Mover
from gateway.audit.spool import Spool
from gateway.audit.store import AuditStore, Limits
from gateway.audit.writer import SpoolWriter
from gateway.core.decision import Decision
from gateway.errors import AuditUnavailable, ConfigError
from gateway.settings import Settings
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

_RESULTS = ("spooled", "unspooled", "failed", "dropped_spool_full", "stored", "duplicate", "refused")


class Audit:
    """Stores what is worth a review; does nothing until it is started, or when it is switched off."""

    def __init__(self, settings: Settings, *, seed: int | None = None) -> None:
        self._settings = settings
        # The process's own generator: the sender of an image can neither know nor choose whether it is drawn.
        self._random = random.Random(seed)
        self._spool: Spool | None = None
        self._writer: SpoolWriter | None = None
        self._mover: Mover | None = None
        self.store: AuditStore | None = None

    def start(self) -> None:
        """Open spool and store; `ConfigError` for a folder or database that cannot be used.

        A database that merely does not answer is waited for in the background, while events gather in the spool. When
        no folder was chosen and the user's cannot be written, the trail stays off, with a warning.
        """
        settings = self._settings
        opened = _open(settings)
        if opened is None:
            return
        spool, store, prepared = opened
        for result in _RESULTS:
            metrics.audit_events_total.labels(result)
        limits = Limits(
            settings.audit_max_events, settings.audit_max_bytes, timedelta(days=settings.audit_max_age_days)
        )
        self.store, self._spool = store, spool
        self._writer = SpoolWriter(spool)
        self._mover = Mover(spool, store, limits)
        self._mover.start(prepared=prepared)

    async def record(
        self, decision: Decision, caller: Caller | None, request_id: str, image: bytes, *, index: int = 0
    ) -> bool:
        """Keep the event of a decision, if it leaves one, before its answer goes out; True once it is in the spool.

        `index` numbers the images of one request. Never raises when disk or database fail, and waits
        for the disk only as long as `SpoolWriter.write` does. What leaves an event is decided, and its place in the
        queue taken, before the first suspension.
        """
        if self._writer is None:
            return False
        settings = self._settings
        sampled = self._random.random() < settings.audit_sample
        kind = kind_of(decision, sampled=sampled, suspects=settings.audit_suspects)
        if kind is None:
            return False
        subject = Subject(
            id=request_id if index == 0 else f"{request_id}.{index:03d}",
            time=datetime.now(UTC),
            kind=kind,
            decision=decision,
            caller=None if caller is None else caller.key_id,
            image=image,
            sampled=sampled,
            sample_probability=settings.audit_sample,
        )
        return await self._writer.write(lambda: subject.record(settings.audit_privacy), size=len(image))

    def close(self) -> None:
        """Write and move what waits, for some seconds; what cannot be moved stays in the spool for the next gateway."""
        if self._writer is None or self._mover is None or self._spool is None or self.store is None:
            return
        writer, self._writer = self._writer, None
        # A thread that hangs in a broken disk or database keeps the spool's lock until the process ends.
        if writer.close() and self._mover.close():
            self._spool.close()
            self.store.close()


def check_audit(settings: Settings) -> None:
    """Check, before any worker starts, whether its `Audit.start` would raise: do the same, then close."""
    opened = _open(settings)
    if opened is not None:
        spool, store, _ = opened
        spool.close()
        store.close()


def _open(settings: Settings) -> tuple[Spool, AuditStore, bool] | None:
    """Spool, store, and whether the store's tables could be checked; None when the trail is off."""
    if not settings.audit:
        return None
    try:
        folder = data_folder(settings)
        spool = Spool(folder / "spool", max_bytes=settings.audit_spool_bytes)
        if settings.audit_url is None:
            # We create the file, since SQLite would let others read it; its journal files get the same permissions.
            (folder / "audit.db").touch(mode=0o600)
    except OSError as error:
        reason = f"no folder for the audit trail: {error} (PALISADE_DATA_DIR)"
        if settings.data_dir is not None or settings.audit_url is not None:
            raise ConfigError(reason) from None
        log.warning("%s: nothing is kept for review", reason)
        return None
    try:
        store = AuditStore(settings.audit_url or sqlite_url(folder / "audit.db"))
        store.prepare()
    except ConfigError:
        spool.close()
        raise
    except AuditUnavailable as error:
        log.warning("audit: %s, events wait in the spool: %s", store.name, " ".join(str(error.__cause__).split()))
        return spool, store, False
    return spool, store, True


def data_folder(settings: Settings) -> Path:
    """The chosen folder, or the user's data folder by the platform's custom, made if it is missing.

    Raises `OSError` when it cannot be made or written.
    """
    folder = settings.data_dir or _user_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return folder


def _user_folder() -> Path:
    try:
        home = Path.home()
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "palisade"
    return Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "palisade"

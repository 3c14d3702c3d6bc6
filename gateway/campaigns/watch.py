"""Campaigns as the rest of the gateway sees them: start, offer each decision, close."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import get_args

import numpy as np

from gateway.access.auth import Caller
from gateway.access.reactions import Reactions
from gateway.audit.database import sqlite_url
from gateway.audit.trail import data_folder
from gateway.campaigns.behaviour import Pattern, Resembles
from gateway.campaigns.fingerprint import Fingerprint, Fingerprinter
from gateway.campaigns.follow import Follower
from gateway.campaigns.records import Query, pack
from gateway.campaigns.store import CampaignStore, Limits
from gateway.core.decision import Decision
from gateway.errors import AuditUnavailable, ConfigError
from gateway.settings import Settings
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two writes of a worker's fingerprints."""
REACTION_SECONDS = 5.0
"""Seconds within which every worker of every gateway on the store knows the keys of a campaign."""
EXPIRY_SECONDS = 600.0
"""Seconds between two looks at what is beyond its age, where campaigns are not looked for."""
WAITING_BYTES = 64 << 20
"""Bytes of pixels that may wait for their fingerprints; beyond it, images are left out and counted."""
WAITING = 20_000
"""Fingerprints that may wait for the store."""
TOGETHER = 32
"""Images whose fingerprints are made at once."""
_NICE = 19


class Campaigns:
    """Fingerprints what was decided, in a thread of the lowest priority; does nothing until it is started."""

    def __init__(self, settings: Settings, reactions: Reactions | None = None) -> None:
        self._settings = settings
        self._reactions = reactions
        self._react_at = 0.0
        self._decided: deque[tuple[Query, np.ndarray]] = deque()
        self._bytes = 0
        self._mutex = threading.Lock()
        self._waiting: deque[tuple[Query, Fingerprint]] = deque()
        self._makers: dict[tuple[int, ...], Fingerprinter] = {}
        self._salt: bytes | None = None
        self._trouble = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._follower: Follower | None = None
        self.store: CampaignStore | None = None

    def start(self) -> None:
        """Begin, if the settings say so and there is a store; a database that does not answer is waited for.

        Where they say no, what was kept before still goes when it is beyond its age.
        """
        settings = self._settings
        if not settings.audit:
            return
        try:
            file = data_folder(settings) / "audit.db"
        except OSError:
            return  # the audit trail has said so
        store = CampaignStore(settings.audit_url or sqlite_url(file))
        limits = Limits(
            settings.campaign_queries,
            timedelta(days=settings.campaign_max_age_days),
            timedelta(days=settings.audit_max_age_days),
        )
        if not settings.campaigns or settings.audit_privacy == "none":
            if settings.campaigns:
                log.warning("campaigns are not looked for: PALISADE_AUDIT_PRIVACY=none keeps nothing of an image")
            if settings.audit_url is not None or file.is_file():
                threading.Thread(
                    target=self._expire, args=(store, limits), name="palisade-campaigns", daemon=True
                ).start()
            return
        self.store = store
        _announce()
        self._follower = Follower(self.store, limits)
        self._thread = threading.Thread(target=self._run, name="palisade-campaigns", daemon=True)
        self._thread.start()

    def offer(self, decision: Decision, caller: Caller | None, request_id: str, *, index: int = 0) -> None:
        """Queue a decision for its fingerprint; returns at once, and never raises."""
        if self._thread is None:
            return
        pixels = decision.pixels
        query = query_of(decision, caller, request_id if index == 0 else f"{request_id}.{index:03d}")
        with self._mutex:
            if self._bytes + pixels.nbytes > WAITING_BYTES:
                metrics.fingerprints_total.labels("left_out").inc()
                return
            self._bytes += pixels.nbytes
            self._decided.append((query, pixels))

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits; `seconds` is how long a thread may go on that hangs in the database."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None or self.store is None or self._follower is None:
            return
        thread.join(seconds)
        if thread.is_alive():
            return  # and what it holds stays open until the process ends
        self._cycle()  # here, since a thread of the lowest priority may get no time on a busy machine
        if self._follower.close(seconds):
            self.store.close()

    def flush(self) -> None:
        """Make the fingerprints of what was offered, and write them; `AuditUnavailable` leaves them waiting."""
        store = self.store
        assert store is not None  # noqa: S101  # made before the thread
        if self._salt is None:
            self._salt = store.prepare()
        if self._follower is not None and not self._follower.started:
            self._follower.prepare(self._salt)
            self._follower.start()
        while some := self._next():
            if (beyond := len(self._waiting) + len(some) - WAITING) > 0:
                for _ in range(beyond):
                    self._waiting.popleft()
                metrics.fingerprints_total.labels("left_out").inc(beyond)
            found = self._fingerprints([pixels for _, pixels in some])
            self._waiting.extend(zip((query for query, _ in some), found, strict=True))
        batch = list(self._waiting)
        if batch:
            store.append(pack(batch), now=datetime.now(UTC))
            self._waiting.clear()
            metrics.fingerprints_total.labels("kept").inc(len(batch))

    def _run(self) -> None:
        if sys.platform == "linux":  # where priority is each thread's own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop.wait(INTERVAL):
            self._cycle()

    def _expire(self, store: CampaignStore, limits: Limits) -> None:
        while True:
            with contextlib.suppress(AuditUnavailable):  # which the audit trail logs
                store.expire(limits, now=datetime.now(UTC))
            if self._stop.wait(EXPIRY_SECONDS):
                store.close()
                return

    def _cycle(self) -> None:
        try:
            self.flush()
            self._react()
        except (AuditUnavailable, ConfigError) as error:
            self._note(f"campaigns: fingerprints wait: {' '.join(str(error.__cause__ or error).split())[:300]}")
        except Exception:
            log.exception("campaigns: fingerprints were lost")
            self._waiting.clear()
        else:
            self._note("")

    def _react(self) -> None:
        """Ask the store, every few seconds, which keys took part in a campaign, whichever gateway saw it."""
        if self._reactions is None or self.store is None or time.monotonic() < self._react_at:
            return
        self._react_at = time.monotonic() + REACTION_SECONDS
        since = datetime.now(UTC) - timedelta(hours=self._settings.campaign_reaction_hours)
        self._reactions.suspect(self.store.suspects(since))

    def _note(self, trouble: str) -> None:
        """Log a failure once when it begins, and its end."""
        if trouble and not self._trouble:
            log.warning("%s", trouble)
        elif self._trouble and not trouble:
            log.info("campaigns: fingerprints are stored again")
        self._trouble = trouble

    def _next(self) -> list[tuple[Query, np.ndarray]]:
        """The next decided images, of one shape and at most `TOGETHER`."""
        found: list[tuple[Query, np.ndarray]] = []
        with self._mutex:
            while self._decided and len(found) < TOGETHER:
                pixels = self._decided[0][1]
                if found and pixels.shape != found[0][1].shape:
                    break
                found.append(self._decided.popleft())
                self._bytes -= pixels.nbytes
        return found

    def _fingerprints(self, images: list[np.ndarray]) -> list[Fingerprint]:
        """Those of images of one shape."""
        assert self._salt is not None  # noqa: S101  # read before
        shape = (images[0].shape[0], images[0].shape[1], images[0].shape[2])
        maker = self._makers.get(shape)
        if maker is None:
            maker = self._makers[shape] = Fingerprinter(self._salt, shape)
        return maker.make_all(images)


def query_of(decision: Decision, caller: Caller | None, request: str) -> Query:
    """What a fingerprint is kept with: who asked, and what was answered."""
    probabilities = decision.served.probabilities
    runner_up, first = np.partition(probabilities, -2)[-2:] if len(probabilities) > 1 else (0.0, probabilities[0])
    return Query(
        time=time.time(),
        request=request,
        model=decision.model,
        key=None if caller is None else caller.key_id,
        label=decision.served.prediction.label,
        p_value=decision.raw.verdict.p_value,
        flagged=decision.flagged,
        margin=float(first - runner_up),
    )


def _announce() -> None:
    """Create the series at zero, so that the first of anything is an increase to Prometheus."""
    for resembles in get_args(Resembles):
        metrics.campaigns_total.labels(resembles)
    for pattern in get_args(Pattern):
        if pattern != "search":
            metrics.query_groups_total.labels(pattern)
    for result in ("kept", "left_out"):
        metrics.fingerprints_total.labels(result)

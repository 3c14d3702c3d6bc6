"""The thread that reads fingerprints back and keeps case files, in one process of all that share a store."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

from gateway.campaigns.analyst import Analyst
from gateway.campaigns.records import Batch
from gateway.campaigns.store import MAX_CASES, CampaignStore, Limits
from gateway.errors import AuditUnavailable
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

INTERVAL = 0.5
LEASE_SECONDS = 15.0
"""Seconds after which another process takes over from one that is gone."""
RENEW_SECONDS = LEASE_SECONDS / 3
"""Age at which the lease is renewed: each renewal is a write to disk."""
RETENTION_SECONDS = 10.0
ACTIVE = timedelta(hours=1)
_BATCHES = 200
_NICE = 19
REST = 3.0
"""Seconds of rest for each second of rebuilding, in which requests have the interpreter."""


class Follower:
    """Waits for the lease; then rebuilds the groups from the queries that are kept, and follows the new ones."""

    def __init__(self, store: CampaignStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._me = secrets.token_hex(8)
        self._salt = b""
        self._analyst: Analyst | None = None
        self._seq = self._written = 0
        self._refused: set[int] = set()
        self._retain_at = 0.0
        self._renewed = datetime.min.replace(tzinfo=UTC)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        return self._thread is not None

    def prepare(self, salt: bytes) -> None:
        """Take the salt of the store, without which nothing can be followed."""
        self._salt = salt

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="palisade-campaign-groups", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> bool:
        """Look at what was written once more, and give the lease back; False if the thread goes on after `seconds`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        with contextlib.suppress(AuditUnavailable):  # the lease ends by itself
            self._step()
            self._store.release(self._me)
        return True

    def follow(self, now: datetime) -> None:
        """One step: ask for the lease, and look at the batches that are new. Raises `AuditUnavailable`."""
        if self._analyst is None or not timedelta() <= now - self._renewed <= timedelta(seconds=RENEW_SECONDS):
            self._renew(now)
        if self._analyst is not None:
            self._look(self._analyst)
            self._retain(now)

    def _renew(self, now: datetime) -> None:
        """Ask for the lease: who gets it anew begins with the groups of the queries that are kept."""
        cursor = self._store.lease(self._me, seconds=LEASE_SECONDS, now=now)
        if cursor is None:
            if self._analyst is not None:
                metrics.campaign_queries.set(0)
            self._analyst = None
            return
        self._renewed = now
        if self._analyst is None:
            analyst = Analyst(self._salt, self._limits.max_queries)
            analyst.restore(self._store.cases(None, limit=MAX_CASES, since=now - self._limits.max_age))
            self._analyst, self._seq, self._written = analyst, 0, cursor

    def _look(self, analyst: Analyst) -> None:
        if self._seq > self._written:  # the store was away when it was to be written, and nobody may ask anything more
            self._write(analyst)
        renewed = time.monotonic()
        while batches := self._store.after(self._seq, limit=_BATCHES):
            for batch in batches:
                began = time.monotonic()
                self._take(analyst, batch)
                self._seq = batch.seq
                if batch.seq <= self._written:
                    analyst.written()  # by the process before
                    if self._stop.wait(REST * (time.monotonic() - began)):
                        return  # rebuilding what another process will rebuild
                if time.monotonic() - renewed > RENEW_SECONDS:
                    renewed = time.monotonic()
                    if self._store.lease(self._me, seconds=LEASE_SECONDS, now=datetime.now(UTC)) is None:
                        self._analyst = None
                        return
            if self._seq > self._written:
                self._write(analyst)
            if len(batches) < _BATCHES:
                return

    def _take(self, analyst: Analyst, batch: Batch) -> None:
        """Look at a batch; one that fails is left out from then on, since whoever begins again meets it again."""
        if batch.seq in self._refused:
            return
        try:
            analyst.take(batch)
        except Exception:
            self._refused.add(batch.seq)
            raise

    def _write(self, analyst: Analyst) -> None:
        new = self._store.write(analyst.cases(), holder=self._me, cursor=self._seq)
        analyst.written()
        self._written = self._seq
        for case in new:
            if case.resembles is not None:
                metrics.campaigns_total.labels(case.resembles).inc()
            else:
                metrics.query_groups_total.labels(case.pattern).inc()
            level = logging.WARNING if case.pattern == "search" else logging.INFO
            log.log(level, "campaigns: %s, %d queries, case %s", case.pattern, case.queries, case.id)

    def _retain(self, now: datetime) -> None:
        if time.monotonic() < self._retain_at:
            return
        self._retain_at = time.monotonic() + RETENTION_SECONDS
        self._store.retain(self._limits, now=now)
        active = self._store.cases("search", limit=1000, since=now - ACTIVE)
        metrics.campaign_queries.set(sum(case.queries for case in active))

    def _run(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop.wait(INTERVAL):
            self._step()

    def _step(self) -> None:
        try:
            with contextlib.suppress(AuditUnavailable):  # which the thread that writes fingerprints logs
                self.follow(datetime.now(UTC))
        except Exception:
            log.exception("campaigns: following failed, begun again")
            self._analyst = None
            self._stop.wait(LEASE_SECONDS)

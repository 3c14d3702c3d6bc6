"""State that all workers of one server share: small values with versions, token buckets, marks that expire.

SQLite in write-ahead mode, in the state folder (`state.db`): a killed worker's locks go with it, and a call takes some
tens of microseconds, so that it may be made from an event loop. Takes from buckets hold for all workers at once;
whoever polls `version()` sees a value within its polling interval (`POLL_SECONDS`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway import metrics
from gateway.errors import ConfigError, Conflict, StoreUnavailable

log = logging.getLogger(__name__)

FOLDER = "PALISADE_STATE_DIR"
FILE = "state.db"
POLL_SECONDS = 0.5
# Seconds that a call waits for another process's write.
_BUSY_SECONDS = 0.1
# After a failure limits are open for this long, so that a broken disk does not cost every request that wait.
_PAUSE_SECONDS = 1.0
_PRUNE_EVERY = 1000

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS entries_version ON entries (version);
CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY, full_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS buckets_full_at ON buckets (full_at);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, until REAL NOT NULL);
"""
# A token bucket as one number, when it is full again (the virtual scheduling form of ITU-T I.371's generic cell rate
# algorithm). A cost above the burst is granted by a full bucket and leaves it in debt. The microsecond is for rounding.
_TAKE = """
INSERT INTO buckets (name, full_at) VALUES (:name, :now + :cost / :rate)
ON CONFLICT (name) DO UPDATE SET full_at = max(full_at, :now) + :cost / :rate
WHERE max(full_at, :now) + min(:cost, :burst) / :rate <= :now + :burst / :rate + 1e-6
RETURNING full_at
"""


class Store:
    """The store in `folder`, or in memory for a process of its own (None); used from any thread."""

    def __init__(self, folder: Path | None) -> None:
        self._path = ":memory:" if folder is None else str(folder / FILE)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._takes = 0
        self._paused_until = 0.0

    def get(self, name: str) -> tuple[dict[str, Any] | None, int]:
        """Value and version of `name`; (None, 0) if it was never put. Raises `StoreUnavailable`."""
        with self._open("get") as connection:
            row = connection.execute("SELECT value, version FROM entries WHERE name = ?", (name,)).fetchone()
        return (None, 0) if row is None else (json.loads(row[0]), row[1])

    def put(self, name: str, value: dict[str, Any], expected: int | None = None) -> int:
        """Set `name` and return its new version.

        With `expected`, only if that still is its version (0: it does not exist). Raises `Conflict` otherwise, and
        `StoreUnavailable`.
        """
        with self._open("put") as connection, _transaction(connection):
            row = connection.execute("SELECT version FROM entries WHERE name = ?", (name,)).fetchone()
            found = 0 if row is None else row[0]
            if expected is not None and found != expected:
                raise Conflict(f"{name} was changed meanwhile: it is at version {found}, not {expected}")
            version = _version(connection) + 1
            connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (name, json.dumps(value), version))
        return version

    def version(self) -> int:
        """The largest version of any value: one more with each `put`, by whichever worker."""
        with self._open("get") as connection:
            return _version(connection)

    def take(self, bucket: str, rate: float, burst: float, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens of a bucket that holds `burst` and gains `rate` a second; `now` is monotonic time.

        Returns 0.0 if they were granted, else the seconds until they could be. A negative cost gives tokens back.
        While the store fails everything is granted.
        """
        if time.monotonic() < self._paused_until:
            return 0.0
        values = {"name": bucket, "rate": rate, "burst": burst, "now": now, "cost": cost}
        try:
            with self._open("take") as connection:
                granted = connection.execute(_TAKE, values).fetchall()
                self._prune(connection, now)
                if granted:
                    return 0.0
                row = connection.execute("SELECT full_at FROM buckets WHERE name = ?", (bucket,)).fetchone()
        except StoreUnavailable:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.warning("limits are open for %g s", _PAUSE_SECONDS)
            return 0.0
        return 0.0 if row is None else max(1e-3, float(row[0]) + (min(cost, burst) - burst) / rate - now)

    def mark(self, name: str, until: float) -> None:
        """Remember `name` until then (seconds since the epoch). Raises `StoreUnavailable`."""
        with self._open("put") as connection, _transaction(connection):
            connection.execute("DELETE FROM marks WHERE until < ?", (time.time(),))
            connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, until))

    def marked(self, name: str) -> bool:
        """Whether `name` was marked; an expired mark may be gone. Raises `StoreUnavailable`."""
        with self._open("get") as connection:
            return connection.execute("SELECT 1 FROM marks WHERE name = ?", (name,)).fetchone() is not None

    def start_afresh(self) -> None:
        """Before workers start: empty the buckets, whose clock is that of the last boot. Raises `StoreUnavailable`."""
        with self._open("put") as connection:
            connection.execute("DELETE FROM buckets")

    def close(self) -> None:
        with self._lock:
            self._drop()

    @contextlib.contextmanager
    def _open(self, operation: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _connect(self._path)
                yield self._connection
            except sqlite3.Error as error:
                self._drop()
                metrics.store_failures_total.labels(operation).inc()
                log.warning("the shared store failed (%s): %s", operation, error)
                raise StoreUnavailable("the shared store failed, see the log", headers={"Retry-After": "1"}) from None

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _prune(self, connection: sqlite3.Connection, now: float) -> None:
        self._takes += 1
        if self._takes % _PRUNE_EVERY == 0:
            full = "SELECT name FROM buckets WHERE full_at <= ? LIMIT ?"
            connection.execute(f"DELETE FROM buckets WHERE name IN ({full})", (now, 2 * _PRUNE_EVERY))  # noqa: S608


def make_folder(chosen: Path | None) -> None:
    """In the supervisor: make the state folder and its store ready, for workers to inherit by environment.

    None chosen: a temporary one, removed at the end. Raises `ConfigError`.
    """
    folder = chosen or Path(tempfile.gettempdir())
    try:
        if chosen is None:
            folder = Path(tempfile.mkdtemp(prefix="palisade-state-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / FILE).touch(mode=0o600)
        store = Store(folder)
        store.start_afresh()
        store.close()
    except OSError as error:
        raise ConfigError(f"{FOLDER}={folder}: {error.strerror}") from None
    except StoreUnavailable:
        raise ConfigError(f"{FOLDER}={folder}: state.db cannot be opened or written; move it away") from None
    os.environ[FOLDER] = str(folder)


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.executescript(_SCHEMA)
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM entries").fetchone()[0])

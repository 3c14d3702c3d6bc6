"""State that all workers of one server share: small values with versions, token buckets, marks that expire.

SQLite in write-ahead mode, in the state folder: a killed worker's locks go with it, and a call takes some tens of
microseconds, so that it may be made from an event loop. Takes from buckets hold for all workers at once; a worker that
polls `version()` sees a value within its polling interval (`POLL_SECONDS`).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import ConfigError, Conflict, StoreUnavailable
from gateway.telemetry import metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

FOLDER = "PALISADE_STATE_DIR"
FILE = "state.db"
# Buckets are written with each request and start anew with the server: they have a file of their own, whose writes do
# not wait for the disk.
LIMITS_FILE = "limits.db"
POLL_SECONDS = 0.5
# Seconds that a call waits for another process's write: many times what one takes, on a crowded machine too.
_BUSY_SECONDS = 0.25
# After a failure limits are kept without the file for this long, so that not every request waits for a broken disk.
_PAUSE_SECONDS = 1.0
_PRUNE_EVERY = 1000

_STATE_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS entries_version ON entries (version);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, until REAL NOT NULL);
"""
_LIMITS_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY, full_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS buckets_full_at ON buckets (full_at);
"""
# A token bucket as one number, when it is full again (the virtual scheduling form of ITU-T I.371's generic cell rate
# algorithm). A cost above the burst is granted by a full bucket and leaves it in debt. The microsecond is for rounding.
_TAKE = """
INSERT INTO buckets (name, full_at) VALUES (:name, :now + :cost / :rate)
ON CONFLICT (name) DO UPDATE SET full_at = max(full_at, :now) + :cost / :rate
WHERE max(full_at, :now) + min(:cost, :burst) / :rate <= :now + :burst / :rate + 1e-6
RETURNING full_at
"""
_OWE = """
INSERT INTO buckets (name, full_at) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET full_at = max(full_at, excluded.full_at)
"""
_PRUNE = "DELETE FROM buckets WHERE name IN (SELECT name FROM buckets WHERE full_at <= :now LIMIT :limit)"


class Store:
    """The store in `folder`, or in memory for a process of its own (None); used from any thread."""

    def __init__(self, folder: Path | None) -> None:
        self._state = _Database(":memory:" if folder is None else str(folder / FILE), _STATE_SCHEMA)
        self._limits = _Database(":memory:" if folder is None else str(folder / LIMITS_FILE), _LIMITS_SCHEMA)
        self._takes = 0
        self._own = _Database(":memory:", _LIMITS_SCHEMA)
        self._own_until = 0.0
        self._spent: dict[str, float] | None = None
        self._spending = threading.Lock()

    def get(self, name: str) -> tuple[dict[str, Any] | None, int]:
        """Value and version of `name`; (None, 0) if it was never put. Raises `StoreUnavailable`."""
        with self._state.open("get") as connection:
            row = connection.execute("SELECT value, version FROM entries WHERE name = ?", (name,)).fetchone()
        return (None, 0) if row is None else (json.loads(row[0]), row[1])

    def put(self, name: str, value: dict[str, Any], expected: int | None = None) -> int:
        """Set `name` and return its new version.

        With `expected`, only if that still is its version (0: it does not exist). Raises `Conflict` otherwise, and
        `StoreUnavailable`.
        """
        with self._state.open("put") as connection, _transaction(connection):
            row = connection.execute("SELECT version FROM entries WHERE name = ?", (name,)).fetchone()
            found = 0 if row is None else row[0]
            if expected is not None and found != expected:
                raise Conflict(f"{name} was changed meanwhile: it is at version {found}, not {expected}")
            version = _version(connection) + 1
            connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (name, json.dumps(value), version))
        return version

    def version(self) -> int:
        """The largest version of any value: one more with each `put`, by whichever worker."""
        with self._state.open("get") as connection:
            return _version(connection)

    def take(self, bucket: str, rate: float, burst: float, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens of a bucket that holds `burst` and gains `rate` a second; `now` is monotonic time.

        Returns 0.0 if they were granted, else the seconds until they could be. A negative cost gives tokens back.
        While the store fails, each worker counts for itself.
        """
        values = {"name": bucket, "rate": rate, "burst": burst, "now": now, "cost": cost}
        wait = self._taken(values)
        if wait == 0.0 and self._spent is not None:
            with self._spending:
                self._spent[bucket] = self._spent.get(bucket, 0.0) + cost / rate
        return wait

    def note_spent(self) -> None:
        """From now on, keep what is granted for `spent`."""
        self._spent = {}

    def spent(self) -> dict[str, float]:
        """What this process has taken from each bucket since the last call, in seconds of its refill."""
        with self._spending:
            found, self._spent = self._spent or {}, {}
        return found

    def owe(self, buckets: Mapping[str, float], now: float) -> None:
        """Let each bucket be full again no earlier than so many seconds after `now` (monotonic), as replicas say.

        Raises `StoreUnavailable`.
        """
        rows = [(name, now + seconds) for name, seconds in buckets.items()]
        with self._limits.open("take") as connection, _transaction(connection):
            connection.executemany(_OWE, rows)

    def _taken(self, values: dict[str, Any]) -> float:
        if time.monotonic() >= self._own_until:
            try:
                return self._take(self._limits, values)
            except StoreUnavailable:
                self._own_until = time.monotonic() + _PAUSE_SECONDS
                log.warning("each worker counts limits for itself for %g s", _PAUSE_SECONDS)
        return self._take(self._own, values)

    def mark(self, name: str, until: float) -> None:
        """Mark `name` until `until` (seconds since the epoch). Raises `StoreUnavailable`."""
        with self._state.open("put") as connection, _transaction(connection):
            connection.execute("DELETE FROM marks WHERE until < ?", (time.time(),))
            connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, until))

    def marked(self, name: str) -> bool:
        """Whether `name` was marked; an expired mark may be gone. Raises `StoreUnavailable`."""
        with self._state.open("get") as connection:
            return connection.execute("SELECT 1 FROM marks WHERE name = ?", (name,)).fetchone() is not None

    def prepare(self) -> None:
        """Make both files; raises `StoreUnavailable`."""
        for database in (self._state, self._limits):
            with database.open("put"):
                pass

    def close(self) -> None:
        self._state.close()
        self._limits.close()
        self._own.close()

    def _take(self, database: _Database, values: dict[str, Any]) -> float:
        with database.open("take") as connection:
            granted = _patient(lambda: connection.execute(_TAKE, values).fetchall())
            self._takes += 1
            if self._takes % _PRUNE_EVERY == 0:
                _patient(lambda: connection.execute(_PRUNE, {"now": values["now"], "limit": 2 * _PRUNE_EVERY}))
            if granted:
                return 0.0
            row = connection.execute("SELECT full_at FROM buckets WHERE name = ?", (values["name"],)).fetchone()
        if row is None:
            return 0.0
        at_once = min(values["cost"], values["burst"])
        return float(max(1e-3, row[0] + (at_once - values["burst"]) / values["rate"] - values["now"]))


class _Database:
    """One SQLite file, opened when it is needed and again after a failure."""

    def __init__(self, path: str, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def open(self, operation: str) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; raises `StoreUnavailable` when SQLite fails."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                yield self._connection
            except sqlite3.Error as error:
                self._drop()
                metrics.store_failures_total.labels(operation).inc()
                log.warning("the shared store failed (%s): %s", operation, error)
                raise StoreUnavailable(
                    "the store that workers share failed; the log has the reason", headers={"Retry-After": "1"}
                ) from None

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=0.0, isolation_level=None, check_same_thread=False)
        _patient(lambda: connection.executescript(self._schema))
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def make_folder(chosen: Path | None) -> None:
    """In the supervisor: make the state folder and its store, which workers find by an environment variable.

    Where no folder is chosen it is a temporary one, which is removed at the end. Raises `ConfigError`.
    """
    name = (
        f"{FOLDER}={chosen}"
        if chosen
        else f"{FOLDER} is unset and no temporary folder can be used (set it to a folder on a local disk)"
    )
    try:
        folder = chosen
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="palisade-state-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.glob(f"{LIMITS_FILE}*"):
            old.unlink()
        for name in (FILE, LIMITS_FILE):
            (folder / name).touch(mode=0o600)
        store = Store(folder)
        store.prepare()
        store.close()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    except StoreUnavailable:
        raise ConfigError(f"{name}: {FILE} cannot be opened or written; move it out of the folder") from None
    os.environ[FOLDER] = str(folder)


def _patient(call: Callable[[], T]) -> T:
    """`call()`, again while another process writes.

    SQLite's own way of waiting sleeps longer and longer, and may starve where others write without pause.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.0, 0.001))  # only so that two do not wake together


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    _patient(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM entries").fetchone()[0])

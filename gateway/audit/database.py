"""The audit database: its tables, how it is opened (SQLite or PostgreSQL), and its schema's version."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from gateway.errors import AuditUnavailable, ConfigError

SCHEMA_VERSION = 3
BUSY_SECONDS = 3.0
"""Seconds that a statement waits for another's lock."""
SKEW = timedelta(hours=1)
"""How far clocks may be apart: a lease that ends later than that after it could is of a clock that was wrong."""
_LOCK = 0x50_41_4C  # of PostgreSQL's advisory locks: one writer of events at a time, also while tables are made


class _Utc(sa.TypeDecorator[datetime]):
    """Aware times in UTC, also in SQLite, which keeps no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_TEXT = sa.String(200)
metadata = sa.MetaData()

schema = sa.Table("audit_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))

events = sa.Table(
    "audit_events",
    metadata,
    # In the order of commits, for those who follow; `id` is in the order of requests.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(40), nullable=False, unique=True),
    sa.Column("time", _Utc, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("model", _TEXT, nullable=False),
    sa.Column("version", _TEXT, nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("flagged", sa.Boolean, nullable=False),
    sa.Column("blocked", sa.Boolean, nullable=False),
    sa.Column("p_value", sa.Double),
    sa.Column("alpha", sa.Double, nullable=False),
    sa.Column("p_cutoff", sa.Double, nullable=False),
    sa.Column("before", sa.JSON, nullable=False),
    sa.Column("after", sa.JSON(none_as_null=True)),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("layers", sa.JSON, nullable=False),
    sa.Column("neutralization", sa.JSON(none_as_null=True)),
    sa.Column("caller", _TEXT),
    sa.Column("image_sha256", sa.String(64)),
    sa.Column("sampled", sa.Boolean, nullable=False),
    sa.Column("sample_probability", sa.Double, nullable=False),
    sa.Column("anomaly", sa.String(16)),
    sa.Column("p_unfamiliar", sa.Double),
    sa.Column("p_attacked", sa.Double),
    sa.Column("pooled", sa.JSON(none_as_null=True)),
    sa.Column("pictures", sa.JSON, nullable=False),
    sa.Column("picture_bytes", sa.Integer, nullable=False),
    sa.Column("review", sa.String(16)),
    sa.Column("note", sa.Text, nullable=False, default=""),
    sa.Column("reviewer", _TEXT),
    sa.Column("reviewed_at", _Utc),
    # Lists and counts read this alone, whatever they filter by.
    sa.Index(
        "audit_events_list",
        "id",
        "time",
        "kind",
        "model",
        "review",
        "flagged",
        "sampled",
        "sample_probability",
        "picture_bytes",
    ),
    sqlite_autoincrement=True,
)

pictures = sa.Table(
    "audit_pictures",
    metadata,
    sa.Column("event_id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("png", sa.LargeBinary, nullable=False),
)

leases = sa.Table(
    "audit_leases",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("until", _Utc, nullable=False),
)


class Database:
    """An engine with transactions that raise our errors; used from any thread."""

    def __init__(self, url: str, *, setting: str = "PALISADE_AUDIT_URL") -> None:
        """`ConfigError` when the URL is not one of SQLite or PostgreSQL, or PostgreSQL's driver is missing.

        `setting` is the variable that it stands in.
        """
        self.url = _parsed(url, setting)
        if self.url.get_backend_name() == "sqlite":
            self._engine = sa.create_engine(self.url, connect_args={"timeout": BUSY_SECONDS})
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            self._engine = sa.create_engine(
                self.url, pool_pre_ping=True, pool_timeout=BUSY_SECONDS, connect_args=_POSTGRESQL
            )

    @property
    def name(self) -> str:
        """The URL as it may be shown."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction; `AuditUnavailable` when the database does not answer, or its tables are not as expected."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, one at a time; also raises `IntegrityError` and `DataError` for bad rows."""
        with _translated(), self._engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                # Numbers (`seq`) are given before the commit: only one writer at a time gives them in its order.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    def prepare(self) -> None:
        """Make the tables of an empty database; `ConfigError` if its tables are not this version's."""
        try:
            if self.url.get_backend_name() == "sqlite":
                self._use_wal()
            with self.writing() as connection:
                _check_schema(connection, self.name)
        except AuditUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, exc.DatabaseError) and "not a database" in str(cause.orig):
                raise ConfigError(f"audit: {self.name} is not a SQLite database") from None
            if isinstance(cause, exc.ProgrammingError):  # as without the right to make tables
                raise ConfigError(f"audit: {self.name}: {' '.join(str(cause.orig).split())[:200]}") from None
            raise

    def close(self) -> None:
        self._engine.dispose()

    def _use_wal(self) -> None:
        """Write-ahead mode, kept in the file; SQLite does not wait by itself while others switch to it."""
        deadline = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(sqlite3.OperationalError), _translated(), self._engine.connect() as connection:
                connection.connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            time.sleep(0.05)


_POSTGRESQL: dict[str, Any] = {
    "connect_timeout": 5,
    # A server that is cut off must not hold threads: statements, locks and unanswered packets all end.
    "options": "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000",
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "application_name": "palisade",
}


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def _parsed(url: str, setting: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise ConfigError(f"{setting}: not a database URL (postgresql://user:password@host/name)") from None
    backend = parsed.drivername.split("+")[0]
    if backend == "sqlite":
        return parsed.set(drivername="sqlite+pysqlite")
    if backend not in ("postgresql", "postgres"):
        raise ConfigError(f"{setting}: {backend} is not supported (postgresql or sqlite)")
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(f'{setting}: PostgreSQL needs `pip install "palisade-gateway[postgres]"`')
    return parsed.set(drivername="postgresql+psycopg")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.IntegrityError, exc.DataError):
        raise
    except exc.SQLAlchemyError as error:
        raise AuditUnavailable("the audit store does not answer") from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not sqlite3 by itself
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer that begins as a reader can't wait for its turn: SQLite refuses it at once.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _check_schema(connection: sa.Connection, name: str) -> None:
    present = set(sa.inspect(connection).get_table_names())
    if schema.name not in present:
        strangers = sorted(present & set(metadata.tables))
        if strangers:
            raise ConfigError(f"audit: {name} has a table {strangers[0]!r} without the schema version of ours")
        metadata.create_all(connection)
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))
        connection.execute(leases.insert().values(name="retention", until=datetime.fromtimestamp(0, UTC)))
        return
    versions = list(connection.execute(sa.select(schema.c.version)).scalars())
    if versions == [1]:
        _add(connection, 2, events.c.anomaly, events.c.p_unfamiliar, events.c.p_attacked)
        versions = [2]
    if versions == [2]:
        _add(connection, 3, events.c.pooled)
        versions = [3]
    if versions != [SCHEMA_VERSION]:
        found = ", ".join(map(str, versions)) or "none"
        raise ConfigError(
            f"audit: {name} has schema version {found}, this gateway knows {SCHEMA_VERSION}: use the gateway that made "
            "it, or another database"
        )


def _add(connection: sa.Connection, version: int, *columns: sa.Column[Any]) -> None:
    """On to the next schema: further columns. A running gateway that knows the one before goes on: they may be null."""
    for column in columns:
        kind = column.type.compile(connection.dialect)
        connection.execute(sa.text(f"ALTER TABLE {events.name} ADD COLUMN {column.name} {kind}"))
    connection.execute(schema.update().values(version=version))

"""The database that replicas share: when each caller's bucket is full again, and which versions are wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway.audit.database import Database
from gateway.errors import Conflict

_ROWS = 500  # of one statement
_KEPT_SECONDS = 3600.0

_metadata = sa.MetaData()
_limits = sa.Table(
    "replica_limits",
    _metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("full_at", sa.Double, nullable=False),  # seconds since the epoch, on the database's clock
)
_entries = sa.Table(
    "replica_entries",
    _metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
)


class ReplicaStore:
    """Every method blocks, and raises `AuditUnavailable` when the database does not answer; used from any thread."""

    def __init__(self, url: str) -> None:
        """`ConfigError` for a URL that cannot be used."""
        self._database = Database(url, setting="PALISADE_REPLICAS_URL")
        self._insert: Any = sqlite.insert if self._database.url.get_backend_name() == "sqlite" else postgresql.insert

    @property
    def name(self) -> str:
        """The URL as it may be shown."""
        return self._database.name

    def prepare(self) -> None:
        """Make the tables where there are none."""
        with self._database.writing() as connection:
            _metadata.create_all(connection)

    def close(self) -> None:
        self._database.close()

    def spend(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Add what was taken from each bucket, in seconds of its refill; returns the seconds until it is full again.

        The form of `gateway.versions.shared_state`: a bucket is when it is full again, so that what two replicas have
        granted in the same moment adds up, and is paid back by waiting.
        """
        found: dict[str, float] = {}
        with self._database.writing() as connection:
            now = self._now(connection)
            connection.execute(_limits.delete().where(_limits.c.full_at < now - _KEPT_SECONDS))
            added = [{"name": name, "full_at": now + cost} for name, cost in spent.items()]
            for first in range(0, len(added), _ROWS):
                made = self._insert(_limits).values(added[first : first + _ROWS])
                later = sa.case((_limits.c.full_at > now, _limits.c.full_at), else_=now)
                rows = connection.execute(
                    made.on_conflict_do_update(
                        index_elements=["name"], set_={"full_at": later + made.excluded.full_at - now}
                    ).returning(_limits.c.name, _limits.c.full_at)
                )
                found |= {name: max(0.0, full_at - now) for name, full_at in rows}
        return found

    def entries(self) -> dict[str, tuple[Any, int]]:
        """Value and version of every entry."""
        with self._database.reading() as connection:
            return {name: (value, version) for name, value, version in connection.execute(sa.select(_entries))}

    def put(self, name: str, value: Any, *, expected: int) -> int:
        """Set an entry that is at version `expected` (0: that does not exist); returns its new version.

        Raises `Conflict` if another replica was faster.
        """
        with self._database.writing() as connection:
            query = sa.select(_entries.c.version).where(_entries.c.name == name).with_for_update()
            found = connection.execute(query).scalar() or 0
            if found != expected:
                raise Conflict(f"{name} was changed by another replica meanwhile: try again")
            row = {"name": name, "value": value, "version": expected + 1}
            if found:
                connection.execute(_entries.update().where(_entries.c.name == name).values(**row))
            else:
                connection.execute(_entries.insert().values(**row))
        return expected + 1

    def _now(self, connection: sa.Connection) -> float:
        if connection.dialect.name == "sqlite":
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

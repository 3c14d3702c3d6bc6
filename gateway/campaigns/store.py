"""Fingerprints and case files in the database of the audit trail: SQLite, or PostgreSQL for several gateways."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.audit.database import SKEW, Database
from gateway.campaigns.behaviour import Pattern
from gateway.campaigns.case import Case
from gateway.campaigns.records import Batch, unpack
from gateway.errors import AuditUnavailable, ConfigError

SCHEMA_VERSION = 2
"""2: records have a margin. Fingerprints of version 1 are dropped; salt and case files stay."""
MAX_CASES = 5_000
"""Case files kept; beyond it those that grew last the longest ago go first, and campaigns last."""
SUSPECT_QUERIES = 3
"""Different images of a campaign from which a key took part: whoever sends the image that others attack sends one."""
MAX_SUSPECT_CASES = 1_000
_CHUNK = 2_000
"""Batches that one call of `retain` looks at, so that others get their turn."""
_TOGETHER = 500
"""Ids in one statement."""
_LEASE = "analyst"

_metadata = sa.MetaData()
_schema = sa.Table(
    "campaign_schema",
    _metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("salt", sa.LargeBinary(32), nullable=False),
)
_batches = sa.Table(
    "campaign_batches",
    _metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("through", sa.BigInteger, nullable=False),  # queries in the batches up to this one, ever
    sa.Column("names", sa.JSON, nullable=False),
    sa.Column("records", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
_cases = sa.Table(
    "campaign_cases",
    _metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("pattern", sa.String(16), nullable=False),
    sa.Column("last_seen", sa.Double, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Index("campaign_cases_list", "pattern", "last_seen"),
)
_leases = sa.Table(
    "campaign_leases",
    _metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("holder", sa.String(40), nullable=False),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("cursor", sa.BigInteger, nullable=False),  # number of the last batch whose case files are written
)


@dataclass(frozen=True)
class Limits:
    """How much is kept: queries, and the age of queries and case files."""

    max_queries: int
    max_age: timedelta
    case_age: timedelta


class CampaignStore:
    """Every method blocks, and raises `AuditUnavailable` when the database does not answer."""

    def __init__(self, url: str) -> None:
        """`ConfigError` for a URL that cannot be used."""
        self._database = Database(url)

    def prepare(self) -> bytes:
        """Make the tables where there are none, and return the salt of all gateways on this store; `ConfigError`."""
        self._database.prepare()
        with self._database.writing() as connection:
            _metadata.create_all(connection)
            rows = connection.execute(sa.select(_schema)).all()
            if not rows:
                salt = secrets.token_bytes(32)
                connection.execute(_schema.insert().values(version=SCHEMA_VERSION, salt=salt))
                connection.execute(_leases.insert().values(name=_LEASE, holder="", until=0.0, cursor=0))
                return salt
            if [row.version for row in rows] == [1]:
                connection.execute(_batches.delete())
                connection.execute(_schema.update().values(version=SCHEMA_VERSION))
                return bytes(rows[0].salt)
        if [row.version for row in rows] != [SCHEMA_VERSION]:
            raise ConfigError(
                f"campaigns: {self._database.name} has tables of schema version {rows[0].version}, this gateway knows "
                f"{SCHEMA_VERSION}: use the gateway that made them, or another database"
            )
        return bytes(rows[0].salt)

    def close(self) -> None:
        self._database.close()

    def append(self, batch: Batch, *, now: datetime) -> None:
        """Add a batch."""
        with self._database.writing() as connection:
            through = self._through(connection) + len(batch.records)
            row = {"time": now.timestamp(), "through": through, "names": batch.names}
            connection.execute(_batches.insert().values(**row, records=batch.records.tobytes()))

    def after(self, seq: int, *, limit: int) -> list[Batch]:
        """Batches with a number above `seq`, in order; those that cannot be read are left out."""
        query = sa.select(_batches).where(_batches.c.seq > seq).order_by(_batches.c.seq).limit(limit)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [batch for row in rows for batch in _readable(row)]

    def queries(self) -> int:
        """How many queries are kept."""
        first = sa.select(_batches.c.through, _batches.c.records).order_by(_batches.c.seq).limit(1)
        with self._database.reading() as connection:
            row = connection.execute(first).one_or_none()
            return 0 if row is None else self._through(connection) - row.through + len(_records(row.records))

    def lease(self, holder: str, *, seconds: float, now: datetime) -> int | None:
        """Become, or stay, the one that analyses: the number of the last batch that is done; None if another is."""
        c, until = _leases.c, now.timestamp() + seconds
        free = sa.or_(c.until <= now.timestamp(), c.until > until + SKEW.total_seconds(), c.holder == holder)
        claim = _leases.update().where(c.name == _LEASE, free)
        with self._database.writing() as connection:
            won = connection.execute(claim.values(holder=holder, until=until)).rowcount == 1
            if not won:
                return None
            return int(connection.execute(sa.select(c.cursor).where(c.name == _LEASE)).scalar_one())

    def release(self, holder: str) -> None:
        """Let another analyse at once."""
        with self._database.writing() as connection:
            connection.execute(_leases.update().where(_leases.c.holder == holder).values(until=0.0))

    def write(self, cases: Sequence[Case], *, holder: str, cursor: int) -> list[Case]:
        """Keep case files and the number of the last batch that they know, all or nothing.

        Returns those whose pattern is new. None is written, and `AuditUnavailable` raised, if another analyses by now.
        """
        known: dict[str, str] = {}
        with self._database.writing() as connection:
            mine = _leases.update().where(_leases.c.name == _LEASE, _leases.c.holder == holder)
            if connection.execute(mine.values(cursor=cursor)).rowcount != 1:
                raise AuditUnavailable("campaigns: another gateway analyses by now")
            for start in range(0, len(cases), _TOGETHER):
                these = _cases.c.id.in_([case.id for case in cases[start : start + _TOGETHER]])
                for row in connection.execute(sa.select(_cases.c.id, _cases.c.pattern).where(these)):
                    known[row.id] = row.pattern
                connection.execute(_cases.delete().where(these))
            if cases:
                connection.execute(_cases.insert(), [_case_row(case) for case in cases])
        return [case for case in cases if known.get(case.id) != case.pattern]

    def cases(
        self, pattern: Pattern | None, *, limit: int, before: float | None = None, since: datetime | None = None
    ) -> list[Case]:
        """Case files, those that grew last first; `before` (seconds) and `since` bound the time when they did."""
        c = _cases.c
        query = sa.select(c.body).order_by(c.last_seen.desc(), c.id).limit(limit)
        if pattern is not None:
            query = query.where(c.pattern == pattern)
        if before is not None:
            query = query.where(c.last_seen < before)
        if since is not None:
            query = query.where(c.last_seen >= since.timestamp())
        with self._database.reading() as connection:
            return [Case.model_validate(body) for body in connection.execute(query).scalars()]

    def suspects(self, since: datetime) -> frozenset[str]:
        """Ids of keys with at least `SUSPECT_QUERIES` different images of a campaign that grew after `since`."""
        c = _cases.c
        query = sa.select(c.body).where(c.pattern == "search", c.last_seen >= since.timestamp())
        query = query.order_by(c.last_seen.desc()).limit(MAX_SUSPECT_CASES)
        with self._database.reading() as connection:
            bodies = connection.execute(query).scalars().all()
        counts = [pair for body in bodies for pair in (body.get("took_part") or body["keys"]).items()]
        return frozenset(key for key, n in counts if n >= SUSPECT_QUERIES)

    def case(self, case_id: str) -> Case | None:
        """One case file."""
        with self._database.reading() as connection:
            body = connection.execute(sa.select(_cases.c.body).where(_cases.c.id == case_id)).scalar()
        return None if body is None else Case.model_validate(body)

    def retain(self, limits: Limits, *, now: datetime) -> None:
        """Remove what is beyond number or age, the oldest first."""
        b, c = _batches.c, _cases.c
        seconds = now.timestamp()
        with self._database.writing() as connection:
            excess = b.through <= self._through(connection) - limits.max_queries
            old = b.time < seconds - limits.max_age.total_seconds()
            # The newest stays, since the count of queries goes on from it.
            oldest = sa.select(b.seq).order_by(b.seq).limit(_CHUNK).subquery()
            newest = connection.execute(sa.select(sa.func.max(b.seq))).scalar() or 0
            remove = _batches.delete().where(b.seq.in_(sa.select(oldest.c.seq)), b.seq < newest)
            connection.execute(remove.where(sa.or_(excess, old)))
            connection.execute(_cases.delete().where(c.last_seen < seconds - limits.case_age.total_seconds()))
            order = (sa.case((c.pattern == "search", 0), else_=1), c.last_seen.desc())
            beyond = connection.execute(sa.select(c.id).order_by(*order).offset(MAX_CASES).limit(500)).scalars()
            connection.execute(_cases.delete().where(c.id.in_(list(beyond))))

    def expire(self, limits: Limits, *, now: datetime) -> None:
        """Remove what is beyond age, where nobody looks for campaigns any more; without tables there is nothing."""
        b, c = _batches.c, _cases.c
        oldest, old = now - limits.max_age, c.last_seen < (now - limits.case_age).timestamp()
        removed = _CHUNK
        while removed == _CHUNK:
            with self._database.writing() as connection:
                if not sa.inspect(connection).has_table(_cases.name):
                    return
                some = sa.select(b.seq).where(b.time < oldest.timestamp()).order_by(b.seq).limit(_CHUNK).subquery()
                removed = connection.execute(_batches.delete().where(b.seq.in_(sa.select(some.c.seq)))).rowcount
                connection.execute(_cases.delete().where(old))

    def _through(self, connection: sa.Connection) -> int:
        last = sa.select(_batches.c.through).order_by(_batches.c.seq.desc()).limit(1)
        return int(connection.execute(last).scalar() or 0)


def _case_row(case: Case) -> dict[str, Any]:
    body = case.model_dump(mode="json")
    return {"id": case.id, "pattern": case.pattern, "last_seen": case.last_seen.timestamp(), "body": body}


def _records(payload: bytes) -> Any:
    return unpack(bytes(payload), {"models": [], "keys": [], "labels": []}, 0).records


def _readable(row: sa.Row[Any]) -> Iterator[Batch]:
    try:
        yield unpack(bytes(row.records), row.names, row.seq)
    except (ValueError, KeyError, TypeError):
        return

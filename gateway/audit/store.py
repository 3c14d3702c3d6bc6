"""Queries of the audit database: add events, list them and their pictures, review, retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.dialects import postgresql, sqlite

from gateway.audit.database import SKEW, Database, events, leases, pictures
from gateway.audit.event import Event, Kind, PictureKind, Record, Review
from gateway.core.kinds import Kind as Anomaly

_CHUNK = 500
"""Events removed in one transaction, so that writers get their turn."""


class StoredEvent(Event):
    """An event with what the store knows of it: which pictures are still kept, and its review."""

    seq: int = Field(description="Grows in the order in which events reached the store.")
    pictures: list[PictureKind]
    review: Review | None
    note: str
    reviewer: str | None = Field(description="Id of the reviewer's key.")
    reviewed_at: datetime | None


@dataclass(frozen=True)
class Filter:
    """Which events; None is any. `review` `none` is those without one; `since` <= time < `until`."""

    model: str | None = None
    kind: Kind | None = None
    review: Review | Literal["none"] | None = None
    flagged: bool | None = None
    anomaly: Anomaly | None = None
    since: datetime | None = None
    until: datetime | None = None

    def clauses(self) -> list[sa.ColumnElement[bool]]:
        c = events.c
        clauses: list[sa.ColumnElement[bool]] = []
        exact = ((c.model, self.model), (c.kind, self.kind), (c.flagged, self.flagged), (c.anomaly, self.anomaly))
        for column, value in exact:
            if value is not None:
                clauses.append(column == value)
        if self.review is not None:
            clauses.append(c.review.is_(None) if self.review == "none" else c.review == self.review)
        if self.since is not None:
            clauses.append(c.time >= self.since)
        if self.until is not None:
            clauses.append(c.time < self.until)
        return clauses


class Sample(BaseModel):
    """The uniform sample: how many were drawn, and the share of flagged ones among all traffic that they estimate."""

    model_config = ConfigDict(frozen=True)

    events: int
    flagged: int
    flagged_share: float | None = Field(description="Weighted by 1 / probability; null without a sample.")


class Stats(BaseModel):
    """Counts of the events that are kept."""

    model_config = ConfigDict(frozen=True)

    events: int
    by_kind: dict[Kind, int]
    by_review: dict[Review | Literal["none"], int]
    picture_bytes: int
    sample: Sample


@dataclass(frozen=True)
class Limits:
    """How much is kept: events, bytes of pictures, age."""

    max_events: int
    max_bytes: int
    max_age: timedelta


class AuditStore:
    """Events in a database; every method blocks, and raises `AuditUnavailable` when the database does not answer."""

    def __init__(self, url: str) -> None:
        """`ConfigError` for a URL that cannot be used."""
        self._database = Database(url)
        self.name = self._database.name

    def prepare(self) -> None:
        """Make or check the tables: `ConfigError` for a schema of another version."""
        self._database.prepare()

    def close(self) -> None:
        self._database.close()

    def insert(self, records: Sequence[Record]) -> int:
        """Add records, all or none, and return how many were new: those whose id is there already are left alone.

        Raises `IntegrityError` or `DataError` when the database refuses one of them.
        """
        by_id = {record.event.id: record for record in records}
        with self._database.writing() as connection:
            known = set(connection.execute(sa.select(events.c.id).where(events.c.id.in_(by_id))).scalars())
            new = [record for key, record in by_id.items() if key not in known]
            if new:
                connection.execute(_ignoring(connection, events), [_row(record) for record in new])
            pngs = [
                {"event_id": record.event.id, "kind": kind, "png": png}
                for record in new
                for kind, png in record.pictures.items()
            ]
            if pngs:
                connection.execute(_ignoring(connection, pictures), pngs)
        return len(new)

    def page(self, filter_: Filter, *, limit: int, before: str | None = None) -> list[StoredEvent]:
        """The newest events first (by id); those with an id below `before`, the last id of the page that precedes."""
        clauses = filter_.clauses()
        if before is not None:
            clauses.append(events.c.id < before)
        query = sa.select(events.c.id).where(*clauses).order_by(events.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            ids = list(connection.execute(query).scalars())
            rows = connection.execute(sa.select(events).where(events.c.id.in_(ids)).order_by(events.c.id.desc()))
            return [_stored(row) for row in rows.mappings()]

    def after(self, seq: int, *, limit: int) -> list[StoredEvent]:
        """Events that reached the store after event number `seq`, in that order."""
        query = sa.select(events).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
        with self._database.reading() as connection:
            return [_stored(row) for row in connection.execute(query).mappings()]

    def last_seq(self) -> int:
        """Number of the event that came last; 0 without one."""
        with self._database.reading() as connection:
            return connection.execute(sa.select(sa.func.max(events.c.seq))).scalar() or 0

    def get(self, event_id: str) -> StoredEvent | None:
        with self._database.reading() as connection:
            row = connection.execute(sa.select(events).where(events.c.id == event_id)).mappings().first()
        return None if row is None else _stored(row)

    def picture(self, event_id: str, kind: PictureKind) -> bytes | None:
        """PNG of an event; None when it was never made, or is no longer kept."""
        query = sa.select(pictures.c.png).where(pictures.c.event_id == event_id, pictures.c.kind == kind)
        with self._database.reading() as connection:
            return connection.execute(query).scalar()

    def review(self, event_id: str, changes: dict[str, Any], *, reviewer: str | None) -> StoredEvent | None:
        """Set `review` and `note`, those that are in `changes`; the event as it is then, None if there is none."""
        values = {**changes, "reviewer": reviewer, "reviewed_at": datetime.now(UTC)}
        with self._database.writing() as connection:
            connection.execute(events.update().where(events.c.id == event_id).values(values))
            row = connection.execute(sa.select(events).where(events.c.id == event_id)).mappings().first()
        return None if row is None else _stored(row)

    def pictured(self, ids: Sequence[str]) -> set[str]:
        """Those of events `ids` whose image is kept."""
        query = sa.select(pictures.c.event_id).where(pictures.c.event_id.in_(ids), pictures.c.kind == "input")
        with self._database.reading() as connection:
            return set(connection.execute(query).scalars())

    def stats(self, filter_: Filter) -> Stats:
        """Counts by kind and review, and the estimate of the uniform sample, over the events that match."""
        c = events.c
        weight = 1.0 / c.sample_probability
        drawn = sa.case((c.sampled, 1), else_=0)
        columns = (c.kind, c.review, c.flagged, sa.func.count(), sa.func.sum(c.picture_bytes), sa.func.sum(drawn))
        # A probability of 0 draws nothing, and has no weight.
        weighted = sa.func.sum(sa.case((c.sampled, weight), else_=0.0))
        query = sa.select(*columns, weighted).where(*filter_.clauses()).group_by(c.kind, c.review, c.flagged)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        by_kind: dict[Kind, int] = dict.fromkeys(get_args(Kind), 0)
        by_review: dict[Review | Literal["none"], int] = dict.fromkeys(("confirmed", "false_positive", "none"), 0)
        for kind, review, _, count, *_ in rows:
            by_kind[kind] += count
            by_review[review or "none"] += count
        total = sum(row[6] for row in rows)
        return Stats(
            events=sum(row[3] for row in rows),
            by_kind=by_kind,
            by_review=by_review,
            picture_bytes=sum(row[4] for row in rows),
            sample=Sample(
                events=sum(row[5] for row in rows),
                flagged=sum(row[5] for row in rows if row[2]),
                flagged_share=sum(row[6] for row in rows if row[2]) / total if total else None,
            ),
        )

    def lease(self, name: str, *, seconds: float, now: datetime) -> bool:
        """Whether the caller, alone of all processes and machines, may do what `name` stands for until then."""
        until, c = now + timedelta(seconds=seconds), leases.c
        claim = leases.update().where(c.name == name, sa.or_(c.until <= now, c.until > until + SKEW))
        with self._database.writing() as connection:
            return connection.execute(claim.values(until=until)).rowcount == 1

    def retain(self, limits: Limits, *, now: datetime) -> int:
        """Remove events beyond age and count, and pictures beyond bytes, the oldest first; returns how many events.

        By count and bytes those go first that were stored first: by their times, events of an hour in which the clock
        was ahead would outlast every later one.
        """
        c = events.c
        removed = self._remove(c.time < now - limits.max_age)
        with self._database.reading() as connection:
            newest = sa.select(c.seq).order_by(c.seq.desc()).offset(limits.max_events).limit(1)
            last = connection.execute(newest).scalar()
        if last is not None:
            removed += self._remove(c.seq <= last)
        self._remove_pictures(limits.max_bytes)
        return removed

    def _remove(self, which: sa.ColumnElement[bool]) -> int:
        removed = 0
        while True:
            with self._database.writing() as connection:
                query = sa.select(events.c.id).where(which).order_by(events.c.seq).limit(_CHUNK)
                ids = list(connection.execute(query).scalars())
                connection.execute(pictures.delete().where(pictures.c.event_id.in_(ids)))
                connection.execute(events.delete().where(events.c.id.in_(ids)))
            removed += len(ids)
            if len(ids) < _CHUNK:
                return removed

    def _remove_pictures(self, max_bytes: int) -> None:
        c = events.c
        running = sa.func.sum(c.picture_bytes, type_=sa.BigInteger).over(order_by=c.seq.desc()).label("running")
        kept = sa.select(c.id, c.seq, running).where(c.picture_bytes > 0).subquery()
        beyond = sa.select(kept.c.id).where(kept.c.running > max_bytes).order_by(kept.c.seq.desc())
        with self._database.reading() as connection:
            ids = list(connection.execute(beyond).scalars())
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            with self._database.writing() as connection:
                connection.execute(pictures.delete().where(pictures.c.event_id.in_(chunk)))
                connection.execute(events.update().where(c.id.in_(chunk)).values(pictures=[], picture_bytes=0))


def _ignoring(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """An insert that leaves rows alone whose key is there."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert: sa.Insert = dialect.insert(table).on_conflict_do_nothing()
    return insert


def _row(record: Record) -> dict[str, Any]:
    return {
        **record.event.model_dump(),
        "pictures": list(record.pictures),
        "picture_bytes": sum(map(len, record.pictures.values())),
    }


def _stored(row: sa.RowMapping) -> StoredEvent:
    return StoredEvent.model_validate(dict(row))

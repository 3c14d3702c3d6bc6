"""The store on SQLite: paging, filters, review, retention, schema version."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.answers.schemas import ClassScore
from gateway.audit.database import sqlite_url
from gateway.audit.store import AuditStore, Filter, Limits
from gateway.errors import AuditUnavailable, ConfigError
from tests.gateway.audit.records import NOON, record

EVERYTHING = Filter()
FOREVER = timedelta(days=10_000)


def ids(store: AuditStore, filter_: Filter = EVERYTHING, limit: int = 200) -> list[int]:
    return [int(event.id) for event in store.page(filter_, limit=limit)]


def test_an_event_comes_back_as_it_went_in(store: AuditStore) -> None:
    sent = record(1)
    assert store.insert([sent]) == 1
    event = store.get(sent.event.id)
    assert event is not None
    assert event.model_dump(include=set(type(sent.event).model_fields)) == sent.event.model_dump()
    assert (event.pictures, event.review, event.note) == (["input", "roa"], None, "")
    assert store.picture(sent.event.id, "roa") == b"map"
    assert store.picture(sent.event.id, "saliency") is None
    assert store.get("nothing") is None


def test_an_event_that_is_there_is_not_added_again(store: AuditStore) -> None:
    assert store.insert([record(1), record(2)]) == 2
    assert store.insert([record(2), record(3), record(3)]) == 1
    assert ids(store) == [3, 2, 1]


def test_pages_meet_without_gap_or_overlap_while_events_arrive(store: AuditStore) -> None:
    store.insert([record(i) for i in range(10)])
    first = store.page(EVERYTHING, limit=4)
    store.insert([record(99)])
    second = store.page(EVERYTHING, limit=4, before=first[-1].id)
    third = store.page(EVERYTHING, limit=4, before=second[-1].id)
    assert [int(event.id) for event in [*first, *second, *third]] == list(range(9, -1, -1))


def test_filters(store: AuditStore) -> None:
    store.insert(
        [
            record(0, model="other"),
            record(1, kind="blocked", anomaly="attacked"),
            record(2, kind="sample", flagged=False, neutralization=None, after=None, p_value=None),
            record(3),
        ]
    )
    store.review(f"{3:026d}", {"review": "confirmed"}, reviewer=None)
    assert ids(store, Filter(model="other")) == [0]
    assert ids(store, Filter(kind="blocked")) == [1]
    assert ids(store, Filter(flagged=False)) == [2]
    assert ids(store, Filter(anomaly="attacked")) == [1]
    assert ids(store, Filter(anomaly="unfamiliar")) == []
    assert ids(store, Filter(review="confirmed")) == [3]
    assert ids(store, Filter(review="none")) == [2, 1, 0]
    assert ids(store, Filter(since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=3))) == [2, 1]
    assert ids(store, Filter(model="tiny", flagged=True)) == [3, 1]


def test_a_review_names_its_reviewer_and_keeps_what_it_does_not_say(store: AuditStore) -> None:
    store.insert([record(1)])
    key = record(1).event.id
    first = store.review(key, {"review": "false_positive", "note": "a sticker"}, reviewer="alice")
    assert first is not None
    assert (first.review, first.note, first.reviewer) == ("false_positive", "a sticker", "alice")
    assert first.reviewed_at is not None
    second = store.review(key, {"review": None}, reviewer="bob")
    assert second is not None
    assert (second.review, second.note, second.reviewer) == (None, "a sticker", "bob")
    assert store.review("nothing", {"review": "confirmed"}, reviewer=None) is None


def test_followers_see_events_in_the_order_of_arrival(store: AuditStore) -> None:
    assert store.last_seq() == 0
    store.insert([record(5)])
    seen = store.last_seq()
    store.insert([record(7)])
    store.insert([record(3)])
    assert [int(event.id) for event in store.after(seen, limit=10)] == [7, 3]


def test_the_samples_share_of_flagged_is_weighted_by_its_probability(store: AuditStore) -> None:
    def drawn(i: int, *, flagged: bool, probability: float) -> None:
        kind = "flagged" if flagged else "sample"
        store.insert([record(i, kind=kind, flagged=flagged, sampled=True, sample_probability=probability)])

    drawn(0, flagged=True, probability=0.5)
    drawn(1, flagged=False, probability=0.5)
    drawn(2, flagged=False, probability=0.1)
    store.insert([record(3), record(4, sample_probability=0.0)])
    stats = store.stats(EVERYTHING)
    assert (stats.events, stats.by_kind["flagged"], stats.by_kind["sample"]) == (5, 3, 2)
    assert stats.by_review == {"confirmed": 0, "false_positive": 0, "none": 5}
    assert stats.picture_bytes == 5 * len(b"pixelsmap")
    assert (stats.sample.events, stats.sample.flagged) == (3, 1)
    assert stats.sample.flagged_share == pytest.approx(2 / (2 + 2 + 10))
    assert store.stats(Filter(model="nobody")).sample.flagged_share is None


def test_retention_by_count_age_and_bytes(store: AuditStore) -> None:
    store.insert([record(i) for i in range(20)])
    assert store.retain(Limits(15, 10**9, FOREVER), now=NOON) == 5
    assert ids(store) == list(range(19, 4, -1))
    assert store.retain(Limits(15, 10**9, timedelta(seconds=10)), now=NOON + timedelta(seconds=20)) == 5
    assert ids(store) == list(range(19, 9, -1))
    size = len(b"pixelsmap")
    assert store.retain(Limits(15, 3 * size, FOREVER), now=NOON) == 0
    assert [bool(event.pictures) for event in store.page(EVERYTHING, limit=20)] == [True] * 3 + [False] * 7
    assert store.stats(EVERYTHING).picture_bytes == 3 * size
    assert store.picture(f"{10:026d}", "input") is None
    assert store.picture(f"{19:026d}", "input") == b"pixels"


def test_events_of_a_clock_that_was_ahead_do_not_outlast_later_ones(store: AuditStore) -> None:
    store.insert([record(i) for i in range(1000, 1010)])
    for i in range(10):
        store.insert([record(i)])
    assert store.retain(Limits(12, 2 * len(b"pixelsmap"), FOREVER), now=NOON) == 8
    assert ids(store) == [1009, 1008, *range(9, -1, -1)]
    assert [event.id for event in store.page(EVERYTHING, limit=20) if event.pictures] == [f"{i:026d}" for i in (9, 8)]


def test_a_lease_is_one_holders_at_a_time(store: AuditStore) -> None:
    assert store.lease("retention", seconds=10, now=NOON)
    assert not store.lease("retention", seconds=10, now=NOON + timedelta(seconds=9))
    assert store.lease("retention", seconds=10, now=NOON + timedelta(seconds=10))


def test_a_lease_of_a_clock_that_was_wrong_holds_nobody_up(store: AuditStore) -> None:
    """As where a machine starts years ahead, and its clock is set right later."""
    assert store.lease("retention", seconds=10, now=NOON + timedelta(days=3650))
    assert store.lease("retention", seconds=10, now=NOON)
    assert not store.lease("retention", seconds=10, now=NOON - timedelta(minutes=30))  # clocks of two machines


def test_gateways_that_start_at_once_make_one_set_of_tables(tmp_path: Path) -> None:
    def prepare(_: int) -> None:
        store = AuditStore(sqlite_url(tmp_path / "shared.db"))
        store.prepare()
        store.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(prepare, range(8)))
    with sqlite3.connect(tmp_path / "shared.db") as connection:
        assert connection.execute("SELECT version FROM audit_schema").fetchall() == [(3,)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize("change", ["UPDATE audit_schema SET version = 4", "DELETE FROM audit_schema"])
def test_another_schema_version_is_refused(store: AuditStore, tmp_path: Path, change: str) -> None:
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(ConfigError, match=r"schema version (4|none), this gateway knows 3"):
        store.prepare()


def test_a_store_of_schema_1_gets_the_columns_that_came_later(tmp_path: Path) -> None:
    store = AuditStore(sqlite_url(tmp_path / "old.db"))
    store.prepare()
    store.insert([record(1)])
    with sqlite3.connect(tmp_path / "old.db") as connection:
        for column in ("anomaly", "p_unfamiliar", "p_attacked", "pooled"):
            connection.execute(f"ALTER TABLE audit_events DROP COLUMN {column}")
        connection.execute("UPDATE audit_schema SET version = 1")
    connection.close()
    store.prepare()
    pooled = ClassScore(index=2, label="stop", probability=0.7)
    store.insert([record(2, anomaly="attacked", p_unfamiliar=0.4, p_attacked=0.005, pooled=pooled)])
    old, new = store.get(record(1).event.id), store.get(record(2).event.id)
    assert old is not None
    assert new is not None
    assert (old.anomaly, old.p_attacked, old.pooled) == (None, None, None)
    assert new.pooled == pooled
    assert (new.anomaly, new.p_unfamiliar, new.p_attacked) == ("attacked", 0.4, 0.005)
    store.close()


def test_a_database_of_others_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE audit_events (x)")
    connection.close()
    with pytest.raises(ConfigError, match="audit_events"):
        AuditStore(sqlite_url(tmp_path / "theirs.db")).prepare()
    (tmp_path / "text.db").write_bytes(b"this is no database, only some text" * 100)
    with pytest.raises(ConfigError, match="not a SQLite database"):
        AuditStore(sqlite_url(tmp_path / "text.db")).prepare()


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/db", "://"])
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AuditStore(url)
    assert "PALISADE_AUDIT_URL" in refused.value.detail
    assert "secret" not in refused.value.detail


def test_a_server_that_does_not_answer_is_unavailable_not_an_error_of_the_configuration() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(AuditUnavailable):
        AuditStore("postgresql://nobody@127.0.0.1:1/none").prepare()

"""The store: one salt, one analyst, and what is beyond number or age goes."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gateway.audit.database import sqlite_url
from gateway.campaigns import store as stores
from gateway.campaigns.analyst import Analyst
from gateway.campaigns.case import Case
from gateway.campaigns.records import RECORD, Batch
from gateway.campaigns.store import CampaignStore, Limits
from gateway.errors import AuditUnavailable, ConfigError
from tests.gateway.campaigns.sequences import SALT, ask, squares

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMITS = Limits(1000, timedelta(days=7), timedelta(days=30))


def batch(n: int) -> Batch:
    return Batch(np.zeros(n, RECORD), ["signs"], [None], ["stop"])


def case(**fields: object) -> Case:
    (found,) = ask(Analyst(SALT, 4096), squares(0, 60))
    return found.model_copy(update={"last_seen": NOON, **fields})


def test_everyone_gets_the_same_salt(store: CampaignStore, tmp_path: Path) -> None:
    other = CampaignStore(sqlite_url(tmp_path / "audit.db"))
    assert other.prepare() == store.prepare()
    assert len(store.prepare()) == 32
    other.close()


def test_tables_of_another_version_are_refused(store: CampaignStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute("UPDATE campaign_schema SET version = 3")
    with pytest.raises(ConfigError, match="schema version 3"):
        store.prepare()


def test_fingerprints_of_version_1_are_dropped_and_the_rest_stays(store: CampaignStore, tmp_path: Path) -> None:
    salt = store.prepare()
    store.append(batch(3), now=NOON)
    assert store.lease("me", seconds=10, now=NOON) == 0
    store.write([case()], holder="me", cursor=1)
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute("UPDATE campaign_schema SET version = 1")
    assert store.prepare() == salt == store.prepare()
    assert store.queries() == 0
    assert len(store.cases(None, limit=9)) == 1
    store.append(batch(2), now=NOON)
    assert ([found.seq for found in store.after(1, limit=9)], store.queries()) == ([2], 2)


def test_batches_come_back_in_order(store: CampaignStore) -> None:
    for n in (1, 2, 3):
        store.append(batch(n), now=NOON)
    found = store.after(0, limit=2)
    assert [len(one.records) for one in found] == [1, 2]
    assert [len(one.records) for one in store.after(found[-1].seq, limit=2)] == [3]
    assert found[0].names == {"models": ["signs"], "keys": [None], "labels": ["stop"]}


def test_a_batch_that_cannot_be_read_is_left_out(store: CampaignStore, tmp_path: Path) -> None:
    store.append(batch(1), now=NOON)
    store.append(batch(2), now=NOON)
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute("UPDATE campaign_batches SET records = x'00' WHERE seq = 1")
    assert [len(one.records) for one in store.after(0, limit=9)] == [2]


def test_queries_are_bounded_by_number_and_age(store: CampaignStore) -> None:
    for _ in range(50):
        store.append(batch(100), now=NOON)
    store.retain(LIMITS, now=NOON)
    assert store.queries() == 1000
    store.retain(LIMITS, now=NOON + timedelta(days=8))
    assert store.queries() == 100  # the newest batch, which the count goes on from
    store.append(batch(7), now=NOON + timedelta(days=8))
    store.retain(LIMITS, now=NOON + timedelta(days=8))
    assert store.queries() == 7


def test_one_analyst_at_a_time(store: CampaignStore) -> None:
    assert store.lease("a", seconds=15, now=NOON) == 0
    assert store.lease("b", seconds=15, now=NOON) is None
    assert store.lease("a", seconds=15, now=NOON + timedelta(seconds=10)) == 0
    store.write([case()], holder="a", cursor=41)
    assert store.lease("b", seconds=15, now=NOON + timedelta(seconds=20)) is None
    assert store.lease("b", seconds=15, now=NOON + timedelta(seconds=26)) == 41
    with pytest.raises(AuditUnavailable):
        store.write([case()], holder="a", cursor=50)
    store.release("b")
    assert store.lease("a", seconds=15, now=NOON + timedelta(seconds=27)) == 41


def test_an_analyst_whose_clock_was_wrong_holds_nobody_up(store: CampaignStore) -> None:
    assert store.lease("gone", seconds=15, now=NOON + timedelta(days=3650)) == 0
    assert store.lease("a", seconds=15, now=NOON) == 0
    assert store.lease("behind", seconds=15, now=NOON - timedelta(minutes=30)) is None


def test_case_files_grow_and_new_patterns_are_told(store: CampaignStore) -> None:
    store.lease("a", seconds=15, now=NOON)
    one = case()
    assert store.write([one], holder="a", cursor=1) == [one]
    grown = one.model_copy(update={"queries": 99})
    assert store.write([grown], holder="a", cursor=2) == []
    assert store.case(one.id) == grown
    video = case(id="video", pattern="video", resembles=None, last_seen=NOON + timedelta(seconds=5))
    assert store.write([video], holder="a", cursor=3) == [video]
    assert store.write([video.model_copy(update={"pattern": "search"})], holder="a", cursor=4)
    assert [found.id for found in store.cases("search", limit=9)] == ["video", one.id]
    assert [found.id for found in store.cases(None, limit=9, before=NOON.timestamp() + 1)] == [one.id]
    assert store.case("nothing") is None


def test_case_files_are_bounded(store: CampaignStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_CASES", 3)
    store.lease("a", seconds=15, now=NOON)
    one = case()
    many = [one.model_copy(update={"id": f"video-{i}", "pattern": "video"}) for i in range(5)]
    store.write([one.model_copy(update={"last_seen": NOON - timedelta(days=1)}), *many], holder="a", cursor=1)
    store.retain(LIMITS, now=NOON)
    kept = store.cases(None, limit=9)
    assert (len(kept), one.id in {found.id for found in kept}) == (3, True)
    store.retain(LIMITS, now=NOON + timedelta(days=40))
    assert store.cases(None, limit=9) == []


def test_who_took_part_in_a_campaign(store: CampaignStore) -> None:
    store.lease("me", seconds=10, now=NOON)
    keys, took_part = {"sender": 90}, {"attacker": 50, "second": 3, "passer-by": 2, "sender": 1}
    later = NOON + timedelta(hours=1)
    cases = [
        case(id="search", keys=keys, took_part=took_part),
        case(id="of an earlier gateway", keys={"early": 3}, took_part=None),
        case(id="old", keys={"old": 50}, last_seen=NOON - timedelta(hours=2)),
        case(id="film", keys={"camera": 50}, took_part=None, pattern="video"),
    ]
    store.write(cases, holder="me", cursor=0)
    assert store.suspects(NOON - timedelta(hours=1)) == {"attacker", "second", "early"}
    assert store.suspects(later) == frozenset()

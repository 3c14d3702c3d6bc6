"""From decisions to case files: off the path of the answer, over workers, through the end of one of them."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from gateway.access.auth import Caller
from gateway.access.reactions import Reactions
from gateway.audit.database import sqlite_url
from gateway.campaigns import store as stores
from gateway.campaigns import watch
from gateway.campaigns.follow import LEASE_SECONDS, Follower
from gateway.campaigns.records import RECORD, Batch
from gateway.campaigns.store import CampaignStore, Limits
from gateway.campaigns.watch import Campaigns
from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline
from gateway.errors import AuditUnavailable
from gateway.settings import Settings
from tests.gateway.campaigns.sequences import squares
from tests.gateway.tiny import clean_image

ALICE = Caller(key_id="alice", role="client", disclosure="label")
LIMITS = Limits(10_000, timedelta(days=7), timedelta(days=30))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait until they are told to end: tests call what they would."""
    monkeypatch.setattr(watch, "INTERVAL", 3600.0)


def decisions(pipeline: Pipeline, n: int) -> list[Decision]:
    """Decisions as a search would get them, on images at another size than the tiny bundle's."""
    (decision,) = pipeline.decide_images([np.asarray(clean_image())], explain=False)
    images = squares(0, n).astype(np.float32) / np.float32(255)
    return [replace(decision, pixels=image) for image in images]


def count(result: str) -> float:
    return REGISTRY.get_sample_value("palisade_fingerprints_total", {"result": result}) or 0.0


def settings(folder: Path, **fields: Any) -> Settings:
    return Settings(data_dir=folder, **fields)


@pytest.mark.usefixtures("idle")
def test_images_of_several_shapes_keep_their_order(tmp_path: Path, pipeline: Pipeline) -> None:
    campaigns = Campaigns(settings(tmp_path))
    campaigns.start()
    (decision, *_) = decisions(pipeline, 1)
    for i in range(100):  # more than are made together
        campaigns.offer(replace(decision, pixels=decision.pixels[:, : 16 + i % 3]), ALICE, f"request-{i}")
    campaigns.close()
    (batch,) = CampaignStore(sqlite_url(tmp_path / "audit.db")).after(0, limit=10)
    assert [record["request"].decode() for record in batch.records] == [f"request-{i}" for i in range(100)]


@pytest.mark.usefixtures("idle")
def test_a_campaign_over_two_workers(tmp_path: Path, pipeline: Pipeline) -> None:
    before = REGISTRY.get_sample_value("palisade_campaigns_total", {"resembles": "score_based"}) or 0.0
    workers = [Campaigns(settings(tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for i, decision in enumerate(decisions(pipeline, 80)):
        workers[i % 2].offer(decision, ALICE, f"request-{i}")
    for worker in workers:
        worker.close()
    store = CampaignStore(sqlite_url(tmp_path / "audit.db"))
    assert store.queries() == 80
    # A worker that ends does not rebuild what the one before it knew: the next one goes on.
    follower = Follower(store, LIMITS)
    follower.prepare(store.prepare())
    follower.follow(datetime.now(UTC))
    (case,) = store.cases("search", limit=9)
    assert (case.keys, case.queries, case.model) == ({"alice": 80}, 80, "tiny")
    assert REGISTRY.get_sample_value("palisade_campaigns_total", {"resembles": "score_based"}) == before + 1
    store.close()


@pytest.mark.usefixtures("idle")
def test_a_store_that_is_away_loses_nothing(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Campaigns(settings(tmp_path))
    worker.start()
    store = worker.store
    assert store is not None
    worker.offer(decisions(pipeline, 1)[0], None, "one")

    def away(*_: object, **__: object) -> None:
        raise AuditUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", away)
        with pytest.raises(AuditUnavailable):
            worker.flush()
    worker.flush()
    assert [bytes(record["request"]) for record in store.after(0, limit=1)[0].records] == [b"one"]
    worker.close()


@pytest.mark.usefixtures("idle")
def test_what_waits_is_bounded(tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    found = decisions(pipeline, 10)
    monkeypatch.setattr(watch, "WAITING_BYTES", 4 * found[0].pixels.nbytes)
    worker, before = Campaigns(settings(tmp_path)), count("left_out")
    worker.start()
    for i, decision in enumerate(found):
        worker.offer(decision, None, f"r{i}")
    assert count("left_out") == before + 6
    worker.flush()
    assert worker.store is not None
    assert worker.store.queries() == 4
    worker.close()


def test_a_query_knows_how_clear_the_answer_was(pipeline: Pipeline) -> None:
    (decision,) = decisions(pipeline, 1)
    first, second = sorted(decision.served.probabilities, reverse=True)[:2]
    assert watch.query_of(decision, None, "r").margin == pytest.approx(first - second)


@pytest.mark.parametrize("off", [{"campaigns": False}, {"audit": False}, {"audit_privacy": "none"}])
def test_off(tmp_path: Path, pipeline: Pipeline, off: dict[str, Any]) -> None:
    worker = Campaigns(settings(tmp_path, **off))
    worker.start()
    worker.offer(decisions(pipeline, 1)[0], None, "r")
    worker.close()
    assert worker.store is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("off", [{"campaigns": False}, {"audit_privacy": "none"}])
def test_what_was_kept_before_goes_with_age_when_nobody_looks_any_more(
    store: CampaignStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: dict[str, Any]
) -> None:
    monkeypatch.setattr(stores, "_CHUNK", 2)
    now = datetime.now(UTC)
    for days in (10, 9, 8, 8, 6):
        store.append(Batch(np.zeros(1, RECORD), ["tiny"], [None], ["stop"]), now=now - timedelta(days=days))
    worker = Campaigns(settings(tmp_path, **off))
    worker.start()
    deadline = time.monotonic() + 10
    while store.queries() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.close()
    assert [batch.seq for batch in store.after(0, limit=9)] == [5]
    assert worker.store is None


def test_a_store_without_tables_stays_without(tmp_path: Path) -> None:
    store = CampaignStore(sqlite_url(tmp_path / "audit.db"))
    store.expire(LIMITS, now=datetime.now(UTC))
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    store.close()


def test_the_analyst_is_replaced_and_the_case_goes_on(store: CampaignStore, pipeline: Pipeline, tmp_path: Path) -> None:
    """As by kill -9: the first neither writes nor gives its lease back."""
    worker = Campaigns(settings(tmp_path))
    worker._salt, worker.store = store.prepare(), store
    found = decisions(pipeline, 120)

    def ask(part: list[Decision]) -> None:
        for decision in part:
            worker._decided.append((watch.query_of(decision, ALICE, f"r{id(decision)}"), decision.pixels))
            worker._bytes += decision.pixels.nbytes
        worker.flush()

    first, second = (Follower(store, LIMITS) for _ in range(2))
    for follower in (first, second):
        follower.prepare(store.prepare())
    ask(found[:60])
    now = datetime.now(UTC)
    first.follow(now)
    (before,) = store.cases("search", limit=9)
    # Groups of no importance, which anybody can make by repeating an image.
    retries = [before.model_copy(update={"id": f"retries-{i}", "pattern": "retries", "path": []}) for i in range(1001)]
    later = {"last_seen": before.last_seen + timedelta(seconds=1), "last_request": "another"}
    store.write([case.model_copy(update=later) for case in retries], holder=first._me, cursor=first._written)
    second.follow(now)
    ask(found[60:])
    second.follow(now + timedelta(seconds=LEASE_SECONDS + 1))
    (after,) = store.cases("search", limit=9)
    assert (before.queries, after.id, after.queries) == (60, before.id, 120)
    first.follow(now + timedelta(seconds=LEASE_SECONDS + 2))  # no longer its business
    assert store.cases("search", limit=9) == [after]


@pytest.mark.usefixtures("idle")
def test_rebuilding_rests_and_following_does_not(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Campaigns(settings(tmp_path))
    worker.start()
    assert worker.store is not None

    def ask(decision: Decision) -> None:
        worker.offer(decision, ALICE, f"r{id(decision)}")
        worker.flush()

    def rests_of(follower: Follower) -> list[float]:
        rests: list[float] = []

        def rest(seconds: float) -> bool:
            rests.append(seconds)
            return False

        monkeypatch.setattr(follower._stop, "wait", rest)
        follower.follow(datetime.now(UTC))
        return rests

    found = decisions(pipeline, 5)
    first, second = (Follower(worker.store, LIMITS) for _ in range(2))
    for follower in (first, second):
        follower.prepare(worker.store.prepare())
    for decision in found[:4]:
        ask(decision)
    assert rests_of(first) == []
    worker.store.release(first._me)
    ask(found[4])
    rests = rests_of(second)
    assert len(rests) == 4
    assert all(rest > 0 for rest in rests)
    worker.close()


def searched(worker: Campaigns, store: CampaignStore, pipeline: Pipeline) -> Follower:
    """A follower of the store, to which the worker has written a search of `ALICE`."""
    worker._salt, worker.store = store.prepare(), store
    for decision in decisions(pipeline, 60):
        worker._decided.append((watch.query_of(decision, ALICE, f"r{id(decision)}"), decision.pixels))
        worker._bytes += decision.pixels.nbytes
    worker.flush()
    follower = Follower(store, LIMITS)
    follower.prepare(store.prepare())
    return follower


def test_a_case_that_could_not_be_written_is_written_though_nobody_asks_anything_more(
    store: CampaignStore, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Campaigns(settings(tmp_path))
    follower = searched(worker, store, pipeline)

    def away(*_: object, **__: object) -> None:
        raise AuditUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", away)
        with pytest.raises(AuditUnavailable):
            follower.follow(datetime.now(UTC))
    follower.follow(datetime.now(UTC))
    (case,) = store.cases("search", limit=9)
    assert case.queries == 60


def test_a_batch_that_fails_is_left_out_when_the_analyst_begins_again(
    store: CampaignStore, pipeline: Pipeline, tmp_path: Path
) -> None:
    worker = Campaigns(settings(tmp_path))
    worker._salt, worker.store = store.prepare(), store
    nobody = Batch(np.ones(1, RECORD), ["tiny"], [None], ["stop"])  # numbers that its names do not have
    for part in (decisions(pipeline, 60)[:30], [], decisions(pipeline, 60)[30:]):
        if not part:
            store.append(nobody, now=datetime.now(UTC))
        for decision in part:
            worker._decided.append((watch.query_of(decision, ALICE, f"r{id(decision)}"), decision.pixels))
            worker._bytes += decision.pixels.nbytes
        worker.flush()
    follower = Follower(store, LIMITS)
    follower.prepare(store.prepare())
    follower._stop.set()  # so that it does not wait before it begins again
    follower._step()
    assert store.cases("search", limit=9) == []
    follower._stop.clear()
    follower._step()
    (case,) = store.cases("search", limit=9)
    assert case.queries == 60


def test_every_worker_learns_whose_keys_they_are(store: CampaignStore, pipeline: Pipeline, tmp_path: Path) -> None:
    reactions = Reactions("label", 0.1)
    worker = Campaigns(settings(tmp_path), reactions)
    follower = searched(worker, store, pipeline)
    follower.follow(datetime.now(UTC))
    worker._react()
    assert reactions.suspects == {ALICE.key_id}
    assert reactions.apply(replace(ALICE, disclosure="verdict"), None) == ALICE

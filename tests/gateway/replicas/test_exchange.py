"""Gateways that are one service: two servers with a state folder each and one database between them."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import pytest

from gateway.errors import AuditUnavailable, ConfigError, Conflict, StoreUnavailable
from gateway.replicas.exchange import Exchange, check_replicas
from gateway.replicas.store import ReplicaStore
from gateway.settings import Settings
from gateway.versions.rollout import Rollout
from gateway.versions.shared_state import Store
from tests.gateway.tiny import write_bundle

SLOW = 1e-4  # tokens a second: nothing comes back while a test runs


class Replica:
    """One server of one worker."""

    def __init__(self, folder: Path, models: Path, url: str) -> None:
        folder.mkdir(exist_ok=True)
        self.store = Store(folder)
        self.exchange = Exchange(url, self.store)
        self.settings = Settings(models=[models], threads=1, workers=1, state_dir=folder)
        self.rollout = Rollout(self.settings, self.store, self.exchange.publish)

    def start(self) -> Replica:
        """What a worker does, but for the thread."""
        self.exchange.start(self.rollout)
        self.exchange._stop.set()
        self.rollout.start()
        return self

    def take(self, count: int = 1, *, bucket: str = "key", burst: float = 10, cost: float = 1.0) -> int:
        """How many of `count` requests are granted."""
        granted = [self.store.take(bucket, SLOW, burst, time.monotonic(), cost) == 0.0 for _ in range(count)]
        return sum(granted)

    def follow(self) -> str:
        self.exchange.cycle()
        self.rollout.follow()
        return self.rollout.registry.get("tiny").bundle.version


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in ("1.0.0", "2.0.0"):
        write_bundle(tmp_path / "models" / version, version=version)
    return tmp_path / "models"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shared.db'}"


@pytest.fixture
def pair(tmp_path: Path, models: Path, url: str) -> tuple[Replica, Replica]:
    return Replica(tmp_path / "a", models, url).start(), Replica(tmp_path / "b", models, url).start()


def test_what_one_granted_is_the_others_debt(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    assert a.take(12) == 10
    assert b.take(1) == 1  # it has not heard yet
    a.exchange.cycle()
    b.exchange.cycle()
    assert b.take(5) == 0
    assert a.take(5) == 0
    assert b.take(3, bucket="another") == 3


def test_a_share_each_is_one_limit(pair: tuple[Replica, Replica]) -> None:
    granted = 0
    for _ in range(10):
        for replica in pair:
            granted += replica.take(1)
            replica.exchange.cycle()
    assert granted in (10, 11)


def test_tokens_that_are_given_back_are_given_back_to_all(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    assert a.take(10) == 10
    assert a.take(1, cost=-4.0) == 1
    a.exchange.cycle()
    assert b.take(1) == 1
    b.exchange.cycle()
    assert b.take(5) == 3


def test_grants_are_reported_late_where_the_database_was_away(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = pair

    def away(_self: ReplicaStore, _spent: object) -> dict[str, float]:
        raise AuditUnavailable("away")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(ReplicaStore, "spend", away)
        assert a.take(6) == 6
        a.exchange.cycle()
        a.exchange.cycle()
        assert a.take(1) == 1  # with what it knows
    a.exchange.cycle()
    assert b.take(1) == 1
    b.exchange.cycle()
    assert b.take(5) == 2


def test_debts_are_of_the_databases_clock_and_end(tmp_path: Path, url: str) -> None:
    store = ReplicaStore(url)
    store.prepare()
    first = store.spend({"key": 3.0, "other": -1.0})
    assert first["key"] == pytest.approx(3.0, abs=0.1)
    assert first["other"] == 0.0
    assert store.spend({"key": 2.0})["key"] == pytest.approx(5.0, abs=0.2)
    many = store.spend({f"address {i}": 1.0 for i in range(1_201)})
    assert len(many) == 1_201
    store.close()


def test_a_switch_reaches_the_other_replica_and_back(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.rollout.activate("tiny", "1.0.0")
    assert (a.follow(), b.follow()) == ("1.0.0", "1.0.0")
    b.rollout.rollback("tiny")
    assert (b.follow(), a.follow()) == ("2.0.0", "2.0.0")


def test_a_replica_that_starts_later_serves_what_is_wanted(
    pair: tuple[Replica, Replica], tmp_path: Path, models: Path, url: str
) -> None:
    pair[0].rollout.activate("tiny", "1.0.0")
    late = Replica(tmp_path / "c", models, url).start()
    assert late.rollout.registry.get("tiny").bundle.version == "1.0.0"


def test_two_changes_at_once_are_one_and_a_conflict(pair: tuple[Replica, Replica]) -> None:
    a, b = pair
    a.rollout.activate("tiny", "1.0.0")
    with pytest.raises(Conflict, match="another replica"):
        b.rollout.load("tiny", "1.0.0")
    assert b.rollout.registry.get("tiny").bundle.version == "2.0.0"
    assert b.follow() == "1.0.0"
    b.rollout.load("tiny", "2.0.0")
    assert a.follow() == "1.0.0"
    assert ("tiny", "2.0.0") in a.rollout.registry.loaded


def test_nothing_is_changed_while_the_database_is_away(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair

    def away(*_: object, **__: object) -> int:
        raise AuditUnavailable("away")

    monkeypatch.setattr(ReplicaStore, "put", away)
    with pytest.raises(StoreUnavailable, match="nothing was changed"):
        a.rollout.activate("tiny", "1.0.0")
    assert a.follow() == "2.0.0"


def test_a_replica_without_the_version_goes_on_with_its_own(tmp_path: Path, models: Path, url: str) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(models / "2.0.0", fewer / "2.0.0")
    a, b = Replica(tmp_path / "a", models, url).start(), Replica(tmp_path / "b", fewer, url).start()
    a.rollout.activate("tiny", "1.0.0")
    assert b.follow() == "2.0.0"
    assert b.rollout.workers()[0].problem is not None
    a.rollout.rollback("tiny")
    assert b.follow() == "2.0.0"


def test_models_that_are_not_here_and_values_of_others_are_passed_over(
    pair: tuple[Replica, Replica], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = ReplicaStore(url)
    store.put("models/elsewhere", {"active": "1.0.0"}, expected=0)
    store.put("models/tiny", {"active": 7}, expected=0)
    store.close()
    assert pair[0].follow() == "2.0.0"
    assert "ignored" in caplog.text


def test_the_thread_exchanges_and_reports_at_the_end(tmp_path: Path, models: Path, url: str) -> None:
    a, b = Replica(tmp_path / "a", models, url), Replica(tmp_path / "b", models, url)
    for replica in (a, b):
        replica.exchange.start(replica.rollout)
        replica.rollout.start()
    assert a.take(9) == 9
    a.exchange.close()
    assert b.take(1) == 1
    b.exchange.cycle()
    assert b.take(1) == 0
    b.exchange.close()


@pytest.mark.parametrize("url", ["mysql://host/name", "not a url"])
def test_a_url_that_cannot_be_used_names_its_setting(url: str) -> None:
    with pytest.raises(ConfigError, match="PALISADE_REPLICAS_URL"):
        check_replicas(Settings(replicas_url=url))


def test_a_database_that_is_away_does_not_keep_a_gateway_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_replicas(Settings())
    check_replicas(Settings(replicas_url=f"sqlite:///{tmp_path / 'no folder' / 'shared.db'}"))
    assert "does not answer" in caplog.text

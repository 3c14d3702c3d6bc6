"""Query campaigns on PostgreSQL: several gateways on one store, one of them killed, the database gone and back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.access.auth import Caller
from gateway.access.reactions import Reactions
from gateway.campaigns import follow, watch
from gateway.campaigns.case import Case
from gateway.campaigns.store import CampaignStore
from gateway.campaigns.watch import Campaigns
from gateway.core.decision import Decision
from gateway.errors import AuditUnavailable
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from tests.e2e.audit_postgres import Postgres
from tests.gateway.campaigns.sequences import squares
from tests.gateway.tiny import encode, patched_image, write_bundle

pytestmark = pytest.mark.e2e
SECONDS = 60.0
_spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(watch, "REACTION_SECONDS", 0.5)


@pytest.fixture(scope="module")
def decisions(tmp_path_factory: pytest.TempPathFactory) -> list[Decision]:
    """Decisions on the images of a search, whose labels and margins are those of another image."""
    bundle = write_bundle(tmp_path_factory.mktemp("models") / "tiny")
    decision = load_pipeline(bundle, Settings(threads=1)).decide(encode(patched_image()))
    return [replace(decision, pixels=image.astype(np.float32) / np.float32(255)) for image in squares(0, 180)]


def started(postgres: Postgres, folder: Path, reactions: Reactions | None = None) -> Campaigns:
    folder.mkdir()
    campaigns = Campaigns(Settings(audit_url=postgres.url, data_dir=folder), reactions)
    campaigns.start()
    return campaigns


def ask(campaigns: Campaigns, part: list[Decision], key: str) -> None:
    for i, decision in enumerate(part):
        campaigns.offer(decision, Caller(key, "client", "verdict"), f"{key}-{i}")


def only(store: CampaignStore, queries: int) -> Case:
    """The one campaign, once it has as many queries."""

    def found() -> bool:
        try:
            cases = store.cases("search", limit=9)
        except AuditUnavailable:  # before the tables are made, and while the database is away
            return False
        return len(cases) == 1 and cases[0].queries >= queries

    wait_for(found)
    return store.cases("search", limit=9)[0]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)


def hold(url: str, folder: str) -> None:
    """A gateway that takes the lease and holds it until it is killed."""
    follow.LEASE_SECONDS = 2.0
    campaigns = Campaigns(Settings(audit_url=url, data_dir=Path(folder)))
    campaigns.start()
    time.sleep(600)


def test_gateways_on_one_store_see_one_campaign_and_react_to_its_keys(
    decisions: list[Decision], postgres: Postgres, tmp_path: Path
) -> None:
    reactions = [Reactions("label", 0.1) for _ in range(2)]
    gateways = [started(postgres, tmp_path / str(i), reactions[i]) for i in range(2)]
    for i in range(0, 60, 2):
        ask(gateways[0], decisions[i : i + 1], "alice")
        ask(gateways[1], decisions[i + 1 : i + 2], "bob")
    store = CampaignStore(postgres.url)
    assert only(store, 60).keys == {"alice": 30, "bob": 30}
    wait_for(lambda: all(each.suspects == {"alice", "bob"} for each in reactions))
    for gateway in gateways:
        gateway.close()
    store.close()


def test_a_campaign_goes_on_when_its_analyst_is_killed(
    decisions: list[Decision], postgres: Postgres, tmp_path: Path
) -> None:
    (tmp_path / "killed").mkdir()
    process = _spawn.Process(target=hold, args=(postgres.url, str(tmp_path / "killed")))
    process.start()
    store = CampaignStore(postgres.url)
    time.sleep(5)  # it has the lease by now, or else the other has
    other = started(postgres, tmp_path / "other")
    ask(other, decisions[:60], "alice")
    before = only(store, 60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    ask(other, decisions[60:120], "alice")
    after = only(store, 120)
    assert (after.id, after.first_seen) == (before.id, before.first_seen)
    other.close()
    store.close()


def test_postgresql_gone_and_back(decisions: list[Decision], postgres: Postgres, tmp_path: Path) -> None:
    gateway = started(postgres, tmp_path / "gateway")
    ask(gateway, decisions[:60], "alice")
    store = CampaignStore(postgres.url)
    before = only(store, 60)
    postgres.stop()
    ask(gateway, decisions[60:120], "alice")
    time.sleep(2)
    postgres.start()
    after = only(store, 120)
    assert after.id == before.id
    gateway.close()
    store.close()

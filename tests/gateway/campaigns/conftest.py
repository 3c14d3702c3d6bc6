from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.audit.database import sqlite_url
from gateway.campaigns.store import CampaignStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CampaignStore]:
    store = CampaignStore(sqlite_url(tmp_path / "audit.db"))
    store.prepare()
    yield store
    store.close()

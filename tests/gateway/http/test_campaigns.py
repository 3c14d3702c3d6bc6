"""/v1/campaigns over HTTP, in process, on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from gateway.audit.database import sqlite_url
from gateway.audit.store import AuditStore
from gateway.audit.trail import Audit
from gateway.campaigns.analyst import Analyst
from gateway.campaigns.case import Case
from gateway.campaigns.store import CampaignStore
from gateway.campaigns.watch import Campaigns
from gateway.errors import PalisadeError
from gateway.http.problems import from_validation, problem_response
from gateway.http.routes import campaigns as routes
from gateway.settings import Settings
from tests.gateway.audit.records import record
from tests.gateway.campaigns.sequences import SALT, ask, squares
from tests.gateway.http.test_events import CLIENT, REVIEWER, call, problem

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def cases() -> list[Case]:
    (one,) = ask(Analyst(SALT, 4096), squares(0, 60))
    patterns = ("search", "search", "search", "stuck_camera")
    return [
        one.model_copy(update={"id": f"case-{i}", "pattern": pattern, "last_seen": NOON + timedelta(seconds=i)})
        for i, pattern in enumerate(patterns)
    ]


@pytest.fixture
def campaigns(tmp_path: Path) -> Iterator[CampaignStore]:
    store = CampaignStore(sqlite_url(tmp_path / "audit.db"))
    store.prepare()
    store.lease("a", seconds=15, now=NOON)
    store.write(cases(), holder="a", cursor=1)
    yield store
    store.close()


@pytest.fixture
def api(campaigns: CampaignStore, store: AuditStore) -> FastAPI:
    app = FastAPI()
    app.state.audit = Audit(Settings())
    app.state.audit.store = store
    app.state.campaigns = Campaigns(Settings())
    app.state.campaigns.store = campaigns
    app.state.caller = REVIEWER

    @app.middleware("http")
    async def caller(request: Request, call_next: Any) -> Response:
        request.state.caller = app.state.caller
        return await call_next(request)

    async def on_error(request: Request, error: Exception) -> Response:
        known = from_validation(error) if isinstance(error, RequestValidationError) else error
        assert isinstance(known, PalisadeError)
        return problem_response(known, request.scope)

    app.add_exception_handler(PalisadeError, on_error)
    app.add_exception_handler(RequestValidationError, on_error)
    app.include_router(routes.router)
    return app


def test_pages(api: FastAPI) -> None:
    first = call(api, "GET", "/v1/campaigns?limit=2").json()
    assert [case["id"] for case in first["campaigns"]] == ["case-2", "case-1"]
    second = call(api, "GET", f"/v1/campaigns?limit=2&cursor={first['next']}").json()
    assert ([case["id"] for case in second["campaigns"]], second["next"]) == (["case-0"], None)


def test_what_is_no_campaign_is_asked_for(api: FastAPI) -> None:
    def found(pattern: str) -> list[str]:
        return [case["id"] for case in call(api, "GET", f"/v1/campaigns?pattern={pattern}").json()["campaigns"]]

    assert found("stuck_camera") == ["case-3"]
    assert len(found("all")) == 4


def test_one_case_and_its_pictures(api: FastAPI, store: AuditStore) -> None:
    path = cases()[0].path
    store.insert([record(0, id=path[0].request), record(1, id=path[1].request, pictures={})])
    body = call(api, "GET", "/v1/campaigns/case-0").json()
    assert (body["pattern"], body["resembles"], body["queries"]) == ("search", "score_based", 60)
    assert (body["keys"], body["pictured"]) == ({"alice": 60}, [path[0].request])
    assert body["path"][0]["number"] == 1


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "pattern=odd", "cursor=now", "cursor=nan", "cursor=-1"])
def test_bad_parameters(api: FastAPI, query: str) -> None:
    problem(call(api, "GET", "/v1/campaigns?" + query), 422, "bad_parameter")


def test_unknown_forbidden_and_off(api: FastAPI) -> None:
    problem(call(api, "GET", "/v1/campaigns/nothing"), 404, "unknown_campaign")
    api.state.caller = CLIENT
    problem(call(api, "GET", "/v1/campaigns"), 403, "forbidden")
    problem(call(api, "GET", "/v1/campaigns/case-0"), 403, "forbidden")
    api.state.caller = REVIEWER
    api.state.campaigns = Campaigns(Settings())
    problem(call(api, "GET", "/v1/campaigns"), 503, "audit_unavailable")

"""Query campaigns over HTTP: /v1/campaigns, for callers with the role `reviewer`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from gateway.audit.trail import Audit
from gateway.campaigns.behaviour import Pattern
from gateway.campaigns.case import Case
from gateway.campaigns.store import CampaignStore
from gateway.campaigns.watch import Campaigns
from gateway.errors import AuditUnavailable, BadParameter, Forbidden, RateLimited, Unauthorized, UnknownCampaign
from gateway.http.dependencies import in_store_thread
from gateway.http.problems import problem_docs
from gateway.http.routes.events import Reviewer
from gateway.http.strict import StrictRoute

router = APIRouter(
    prefix="/v1/campaigns",
    responses=problem_docs(Unauthorized, Forbidden, BadParameter, RateLimited, AuditUnavailable),
    route_class=StrictRoute,
)


class CasePage(BaseModel):
    """Case files, those that grew last first; `next` is the `cursor` of the page that follows, null at the end."""

    model_config = ConfigDict(frozen=True)

    campaigns: list[Case]
    next: float | None


class CaseFile(Case):
    """A case file, and which requests of its path left an event whose image is kept."""

    pictured: list[str] = Field(description="Ids of events: `/v1/events/{id}/image` is the picture.")


@router.get("")
async def campaigns(
    request: Request,
    _caller: Reviewer,
    pattern: Annotated[
        Pattern | Literal["all"], Query(description="`search` is campaigns; the others are groups that are none.")
    ] = "search",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[float | None, Query(ge=0.0, lt=1e12, allow_inf_nan=False)] = None,
) -> CasePage:
    """Groups of near-duplicate queries: campaigns, or what else was named."""
    store = _store(request)
    which = None if pattern == "all" else pattern
    found = await in_store_thread(lambda: store.cases(which, limit=limit + 1, before=cursor))
    page = found[:limit]
    return CasePage(campaigns=page, next=page[-1].last_seen.timestamp() if len(found) > limit else None)


@router.get("/{campaign_id}", responses=problem_docs(UnknownCampaign))
async def campaign(request: Request, _caller: Reviewer, campaign_id: str) -> CaseFile:
    """One case file."""
    store, audit = _store(request), _audit(request)

    def read() -> CaseFile | None:
        case = store.case(campaign_id)
        if case is None:
            return None
        kept = set() if audit.store is None else audit.store.pictured([step.request for step in case.path])
        return CaseFile(**case.model_dump(), pictured=[step.request for step in case.path if step.request in kept])

    found = await in_store_thread(read)
    if found is None:
        raise UnknownCampaign(f"no campaign {campaign_id[:40]!r}, or it is no longer kept")
    return found


def _audit(request: Request) -> Audit:
    audit: Audit = request.app.state.audit
    return audit


def _store(request: Request) -> CampaignStore:
    campaigns: Campaigns = request.app.state.campaigns
    if campaigns.store is None:
        raise AuditUnavailable(
            "campaigns are not looked for (PALISADE_CAMPAIGNS, PALISADE_AUDIT, PALISADE_AUDIT_PRIVACY)"
        )
    return campaigns.store

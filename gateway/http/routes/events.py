"""Reviewing over HTTP: /v1/events, for callers with the role `reviewer`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gateway.access.auth import Auth, Caller
from gateway.audit.event import Kind, PictureKind, Review
from gateway.audit.store import AuditStore, Filter, Stats, StoredEvent
from gateway.audit.trail import Audit
from gateway.core.kinds import Kind as Anomaly
from gateway.errors import (
    AuditUnavailable,
    BadParameter,
    Forbidden,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    Unauthorized,
    UnknownEvent,
)
from gateway.http.authentication import require
from gateway.http.bodies import StrictBody
from gateway.http.dependencies import in_store_thread
from gateway.http.problems import problem_docs
from gateway.http.strict import StrictRoute

log = logging.getLogger(__name__)

MAX_STREAMS = 16
"""Open streams of one worker; each asks the store once a second."""
POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
_STREAM_BATCH = 100
_NO_NUL = "^[^\\x00]*$"  # which PostgreSQL keeps in no text
_streams = 0


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time whose year in UTC is 1 to 9999") from None


Reviewer = Annotated[Caller, Depends(require("reviewer"))]
Since = Annotated[
    datetime | None,
    AfterValidator(lambda v: v and _utc(v)),
    Query(description="A time in ISO 8601; UTC if it has no offset."),
]
ReviewState = Literal["confirmed", "false_positive", "none"]

router = APIRouter(
    prefix="/v1/events",
    responses=problem_docs(Unauthorized, Forbidden, BadParameter, RateLimited, AuditUnavailable),
    route_class=StrictRoute,
)
_ONE = problem_docs(UnknownEvent)


class EventPage(BaseModel):
    """Events, newest first; `next` is the `cursor` of the page that follows, null at the end."""

    model_config = ConfigDict(frozen=True)

    events: list[StoredEvent]
    next: str | None


class ReviewBody(StrictBody):
    """A review; absent fields stay as they are, and `review` null removes a review."""

    review: Review | None = None
    note: str = Field(default="", max_length=1000, pattern=_NO_NUL)


def event_filter(
    model: Annotated[str | None, Query(max_length=200, pattern=_NO_NUL)] = None,
    kind: Kind | None = None,
    review: ReviewState | None = None,
    flagged: Annotated[bool | None, Query()] = None,
    anomaly: Annotated[Anomaly | None, Query(description="The verdict's `kind`.")] = None,
    since: Since = None,
    until: Since = None,
) -> Filter:
    """The query parameters that choose events."""
    return Filter(model=model, kind=kind, review=review, flagged=flagged, anomaly=anomaly, since=since, until=until)


Chosen = Annotated[Filter, Depends(event_filter)]


@router.get("")
async def events(
    request: Request,
    _caller: Reviewer,
    chosen: Chosen,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=40, pattern=_NO_NUL)] = None,
) -> EventPage:
    """Events of flagged, changed, blocked or randomly drawn inputs, newest first."""
    store = _store(request)
    found = await in_store_thread(lambda: store.page(chosen, limit=limit + 1, before=cursor))
    page = found[:limit]
    return EventPage(events=page, next=page[-1].id if len(found) > limit else None)


@router.get("/stats")
async def stats(request: Request, _caller: Reviewer, chosen: Chosen) -> Stats:
    """Counts by kind and review, and the flagged share of the uniform sample."""
    store = _store(request)
    return await in_store_thread(lambda: store.stats(chosen))


@router.get("/stream", response_class=StreamingResponse)
async def stream(
    request: Request, caller: Reviewer, last_event_id: Annotated[int | None, Header(ge=0, lt=1 << 63)] = None
) -> StreamingResponse:
    """Server-sent events, one for each event that reaches the store; `Last-Event-ID` resumes after that event.

    A stream ends when its key is revoked or its session is over.
    """
    store = _store(request)
    if _streams >= MAX_STREAMS:
        raise Overloaded(f"{MAX_STREAMS} streams are open", headers={"Retry-After": "10"})
    seq = last_event_id if last_event_id is not None else await in_store_thread(store.last_seq)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    auth: Auth = request.app.state.auth
    admitted = partial(auth.still, caller, "reviewer")
    return StreamingResponse(_follow(store, seq, admitted), media_type="text/event-stream", headers=headers)


@router.get("/{event_id}", responses=_ONE)
async def event(request: Request, _caller: Reviewer, event_id: str) -> StoredEvent:
    """One event."""
    store = _store(request)
    return _known(await in_store_thread(lambda: store.get(event_id)), event_id)


@router.get("/{event_id}/image", response_class=Response, responses={200: {"content": {"image/png": {}}}, **_ONE})
async def image(request: Request, _caller: Reviewer, event_id: str, kind: PictureKind = "input") -> Response:
    """A picture of an event: pixels or maps at the network's size, encoded by the gateway, never what was sent."""
    store = _store(request)
    png = await in_store_thread(lambda: store.picture(event_id, kind))
    if png is None:
        raise UnknownEvent(f"event {event_id[:40]!r} has no picture {kind!r}, or it is no longer kept")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=300"}
    return Response(png, media_type="image/png", headers=headers)


@router.patch("/{event_id}", responses=_ONE)
async def review(request: Request, caller: Reviewer, event_id: str, body: ReviewBody) -> StoredEvent:
    """Confirm an event or call it a false positive; the last review counts."""
    store = _store(request)
    changes = body.model_dump(exclude_unset=True)
    if not changes:
        raise BadParameter("the body has neither `review` nor `note`")
    return _known(await in_store_thread(lambda: store.review(event_id, changes, reviewer=caller.key_id)), event_id)


async def _follow(store: AuditStore, seq: int, admitted: Callable[[], bool]) -> AsyncIterator[str]:
    global _streams  # noqa: PLW0603  # of this process, on its one event loop
    _streams += 1
    quiet = 0.0
    try:
        yield "retry: 2000\n\n"
        while not _server_is_stopping():
            with contextlib.suppress(StoreUnavailable):  # where nobody knows whether the session goes on
                if not admitted():
                    return
            try:
                found = await in_store_thread(partial(store.after, seq, limit=_STREAM_BATCH))
            except AuditUnavailable:
                found = []
            for entry in found:
                seq = entry.seq
                yield f"id: {entry.seq}\nevent: event\ndata: {entry.model_dump_json()}\n\n"
            quiet = 0.0 if found else quiet + POLL_SECONDS
            if quiet >= HEARTBEAT_SECONDS:
                quiet = 0.0
                yield ": still here\n\n"
            if len(found) < _STREAM_BATCH:
                await asyncio.sleep(POLL_SECONDS)
    finally:
        _streams -= 1


def _server_is_stopping() -> bool:
    """Whether uvicorn is to stop: it waits for open answers, and a stream would stay open for ever."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


def _store(request: Request) -> AuditStore:
    audit: Audit | None = getattr(request.app.state, "audit", None)
    if audit is None or audit.store is None:
        raise AuditUnavailable("the audit trail is off")
    return audit.store


def _known(found: StoredEvent | None, event_id: str) -> StoredEvent:
    if found is None:
        raise UnknownEvent(f"no event {event_id[:40]!r}, or it is no longer kept")
    return found

"""Routes of the console's session: log in with a key, show the caller, log out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.access.auth import Auth, Caller
from gateway.access.limits import Limit, address_block, charge
from gateway.access.sessions import COOKIE, CSRF_COOKIE, LIFETIME
from gateway.answers import schemas
from gateway.errors import BadParameter, RateLimited, StoreUnavailable, Unauthorized
from gateway.http.bodies import StrictBody
from gateway.http.dependencies import caller_of
from gateway.http.problems import problem_docs
from gateway.http.strict import StrictRoute
from gateway.telemetry import metrics

_MAX_BYTES = 4096
# Failed attempts of one address: ten at once, then one in ten seconds.
_RATE, _BURST = 0.1, 10.0


class Login(StrictBody):
    key: str


_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": Login.model_json_schema()}}}
}
_UNSAFE = problem_docs(Unauthorized, BadParameter, RateLimited, StoreUnavailable)

router = APIRouter(prefix="/v1/session", route_class=StrictRoute)


@router.post("", responses=_UNSAFE, openapi_extra=_BODY)
async def log_in(request: Request, response: Response) -> schemas.SessionInfo:
    """Exchange an API key for a session cookie."""
    auth: Auth = request.app.state.auth
    address = address_block(request.client.host) if request.client else "unknown"
    limit = Limit(f"login:{address}", _RATE, _BURST)
    login = await _read(request)
    charge(request.app.state.store, limit)
    key = auth.key(login.key)
    if key is None:
        metrics.auth_total.labels("invalid").inc()
        raise Unauthorized("this is not a valid key", headers={"WWW-Authenticate": 'Bearer realm="palisade"'})
    charge(request.app.state.store, limit, -1.0)
    session = auth.sessions.open(key)
    secure = request.url.scheme == "https"
    for name, value, hidden in ((COOKIE, session.cookie, True), (CSRF_COOKIE, session.csrf, False)):
        response.set_cookie(name, value, max_age=LIFETIME, secure=secure, httponly=hidden, samesite="strict")
    return _info(auth.caller_of(key, session))


@router.get("", responses=problem_docs(Unauthorized, RateLimited))
async def who_am_i(request: Request) -> schemas.SessionInfo:
    """Role and disclosure of the caller, with a session or without."""
    return _info(caller_of(request))


@router.delete("", status_code=204, responses=_UNSAFE)
async def log_out(request: Request) -> Response:
    """End the session, for every worker."""
    session = caller_of(request).session
    if session is not None:
        request.app.state.auth.sessions.end(session)
    response = Response(status_code=204)
    for name in (COOKIE, CSRF_COOKIE):
        response.delete_cookie(name, samesite="strict")
    return response


async def _read(request: Request) -> Login:
    """The key in the body. Little is read of a stranger's body, and only JSON, which no other site's form can send."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadParameter("the body must be JSON: Content-Type application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BYTES:
            raise BadParameter(f"the body has more than {_MAX_BYTES} bytes")
    try:
        return Login.read(data)
    except BadParameter as error:
        raise BadParameter(f'the body must be {{"key": "..."}}: {error.detail}') from None


def _info(caller: Caller) -> schemas.SessionInfo:
    session = caller.session
    return schemas.SessionInfo(
        key_id=caller.key_id,
        role=caller.role,
        disclosure=caller.disclosure,
        csrf=None if session is None else session.csrf,
        expires=None if session is None else datetime.fromtimestamp(session.expires, UTC),
    )

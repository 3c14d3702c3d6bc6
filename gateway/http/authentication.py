"""Authentication of HTTP requests: the middleware that admits callers, the dependency on a role, its OpenAPI text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access.auth import Auth, Caller, forbidden
from gateway.access.keys import Role
from gateway.access.sessions import COOKIE
from gateway.errors import PalisadeError
from gateway.http.problems import problem_response


class AuthMiddleware:
    """Sets `request.state.caller`, or answers 401, 403 or 429 before anything of the body is read."""

    def __init__(self, app: ASGIApp, auth: Auth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["caller"] = self._auth.admit(scope)
        except PalisadeError as error:
            await problem_response(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def require(role: Role) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency that returns the caller, who has at least `role`; it raises `Forbidden` otherwise."""

    async def check(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if not caller.may(role):
            raise forbidden(f"this needs the role {role}, the key has {caller.role}")
        return caller

    return check


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the ways to authenticate."""
    schemes = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key (`palisade keys create`)."},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "Made by `POST /v1/session`."},
    }
    components = {**document.get("components", {}), "securitySchemes": schemes}
    # The empty one is for a gateway without keys.
    return {**document, "components": components, "security": [{"key": []}, {"session": []}, {}]}

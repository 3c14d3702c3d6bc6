"""The short way to a prediction: plain requests for one pass by BentoML's and FastAPI's layers.

Some twenty layers of routing, dependencies and exception handling stand around a route, and together they take as much
processor time as a small network. A request that needs none of them (`POST`, a query of plain parameters, no coding, no
form) is taken from here to the very function that the route calls, through the layers of our own that stand before
every route. Everything else goes on to the routes, so that what is odd is refused there, in one place.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import cast

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.answers.certificate_request import Asked
from gateway.answers.respond import Explain
from gateway.errors import PalisadeError
from gateway.http.problems import problem_response
from gateway.http.routes import v1
from gateway.http.routes.oip import routes as oip

_Answer = Callable[[Request], Awaitable[Response]]

_PREDICT = "/v1/predict"
_INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
# What no route can refuse or read in another way; longer and other values are the route's to judge.
_PLAIN = {
    "explain": re.compile("none|saliency|all"),
    "model": re.compile(r"[A-Za-z0-9._-]{1,64}"),
    "top_k": re.compile("[1-9][0-9]{0,3}"),
}
_LONGEST_QUERY = 120
_KEY = "palisade.answer"


class FrontDoor:
    """ASGI middleware around the whole server: `api`'s answers to plain requests for predictions, and `app` behind."""

    def __init__(self, app: ASGIApp, *, api: FastAPI, layers: Sequence[Middleware]) -> None:
        """`layers` stand before the answers, the outermost first."""
        self._app = app
        self._api = api
        short: ASGIApp = _answer
        for layer in reversed(layers):
            short = layer.cls(short, *layer.args, **layer.kwargs)
        self._short = short

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _plain(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if answer is None:
            await self._app(scope, receive, send)
        else:
            await self._short({**scope, "app": self._api, _KEY: answer}, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        response = await cast(_Answer, scope[_KEY])(request)
    except PalisadeError as error:
        response = problem_response(error, scope)
    except ClientDisconnect:
        response = Response(status_code=499)  # nobody is left to read it; the status is for the log
    await response(scope, receive, send)


def _plain(scope: Scope) -> _Answer | None:
    """What answers a request by the short way; None for one that takes the long way."""
    path, query = scope["path"], scope["query_string"]
    if path == _PREDICT:
        return _predicting(query) if len(query) <= _LONGEST_QUERY and _plain_body(scope) else None
    found = None if query else _INFER.fullmatch(path)
    if found is None or not path.isprintable() or not _plain_body(scope):
        return None
    return partial(oip.infer, model=found["model"], version=found["version"])


def _plain_body(scope: Scope) -> bool:
    """Whether a body is neither coded nor a form."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" or (name == b"content-type" and value.lower().startswith(b"multipart/")):
            return False
    return True


@lru_cache(maxsize=64)
def _predicting(query: bytes) -> _Answer | None:
    """What answers `/v1/predict` with these query parameters; None unless all of them are plain."""
    given: dict[str, str] = {}
    for part in query.decode("latin-1").split("&") if query else []:
        name, _, value = part.partition("=")
        if name in given or name not in _PLAIN or not _PLAIN[name].fullmatch(value):
            return None
        given[name] = value
    return partial(
        v1.answer,
        name=given.get("model"),
        top_k=int(given["top_k"]) if "top_k" in given else None,
        explain=cast(Explain, given.get("explain", "none")),
        asked=Asked(),
    )

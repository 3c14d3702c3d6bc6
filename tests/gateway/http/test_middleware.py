from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway.http.middleware import ProbeMiddleware


@pytest.mark.parametrize(
    ("path", "status", "media_type"),
    [
        ("/readyz", 503, "application/problem+json"),
        ("/readyz", 200, "text/plain; charset=utf-8"),
        ("/other", 503, "text/plain; charset=utf-8"),
    ],
)
def test_probes_that_are_not_ready_say_so_in_our_shape(path: str, status: int, media_type: str) -> None:
    async def probe(_: Request) -> Response:
        return PlainTextResponse("Service Unavailable", status_code=status)

    app = ProbeMiddleware(Starlette(routes=[Route(path, probe)]))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            return await client.get(path)

    response = asyncio.run(ask())
    assert (response.status_code, response.headers["content-type"]) == (status, media_type)
    if "json" in media_type:
        assert (response.json()["code"], response.headers["retry-after"]) == ("not_ready", "1")

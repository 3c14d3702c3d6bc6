"""The route of a bundle's report: a page of its own, under a policy that lets it do nothing but be read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from gateway.answers.disclosure import shows
from gateway.console.headers import REPORT_SECURITY
from gateway.console.report import report_of
from gateway.core.manifest import REPORT
from gateway.errors import Forbidden, NotFound, NotReady, RateLimited, Unauthorized, UnknownModel
from gateway.http.dependencies import caller_of, registry_of
from gateway.http.problems import problem_docs
from gateway.http.strict import StrictRoute

# Another version may become active at any time; the entity tag spares what did not change.
_HEADERS = {**REPORT_SECURITY, "Cache-Control": "private, no-cache"}

router = APIRouter(route_class=StrictRoute)


@router.get(
    "/v1/models/{name}/report",
    response_class=Response,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}},
        **problem_docs(Unauthorized, Forbidden, UnknownModel, NotFound, RateLimited, NotReady),
    },
)
def report(request: Request, name: Annotated[str, Path(max_length=200)]) -> Response:
    """The report that a model's bundle ships: the robustness card as a page with pictures, at disclosure `full`."""
    if not shows(caller_of(request).disclosure, "full"):
        raise Forbidden("the report shows manifest and robustness card, which are for callers at disclosure full")
    bundle = registry_of(request).get(name).bundle
    body = report_of(bundle)
    etag = f'"{bundle.manifest.files[REPORT][:32]}"'
    headers = {**_HEADERS, "ETag": etag}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="text/html; charset=utf-8", headers=headers)

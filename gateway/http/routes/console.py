"""Routes of the console: the page for browsers at `/`, its assets, and the samples of a model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from gateway.answers import schemas
from gateway.console.assets import Asset, digest_of, load_assets, page_of
from gateway.console.headers import SECURITY
from gateway.console.samples import sample_png, samples_of
from gateway.errors import NotFound, NotReady, UnknownModel
from gateway.http.dependencies import registry_of
from gateway.http.problems import problem_docs
from gateway.http.strict import StrictRoute

_ASSETS = load_assets()
_DIGEST = digest_of(_ASSETS)
_PAGE = page_of(_ASSETS, _DIGEST)
_FOREVER = "public, max-age=31536000, immutable"
_CHECK = "no-cache"

router = APIRouter()
samples_router = APIRouter(prefix="/v1/models/{name}/samples", route_class=StrictRoute)

Name = Annotated[str, Path(max_length=200)]


def wants_page(request: Request) -> bool:
    """Whether a browser asks for `/`: it names text/html, as command-line clients do not."""
    return "text/html" in request.headers.get("accept", "")


def page(request: Request) -> Response:
    """The console's page."""
    return _answer(request, _PAGE, _CHECK, {"Vary": "Accept"})


@router.get("/console/{digest}/{name:path}", include_in_schema=False)
async def asset(request: Request, digest: str, name: str) -> Response:
    found = _ASSETS.get(name)
    if found is None:
        raise NotFound("the console has no such file")
    # A page of another release asks under its own digest, and must not cache this release's file.
    return _answer(request, found, _FOREVER if digest == _DIGEST else _CHECK)


@samples_router.get("", responses=problem_docs(UnknownModel, NotReady))
async def samples(request: Request, name: Name) -> schemas.SampleList:
    """The samples that a model's bundle ships: clean images, attacked and patched ones, with their recorded answers."""
    return schemas.SampleList(samples=samples_of(registry_of(request).get(name).bundle))


@samples_router.get(
    "/{file}",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **problem_docs(UnknownModel, NotFound, NotReady),
    },
)
def sample(request: Request, name: Name, file: Name) -> Response:
    """One sample, as PNG."""
    body = sample_png(registry_of(request).get(name).bundle, file)
    headers = {"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
    return Response(body, media_type="image/png", headers=headers)


def _answer(request: Request, asset: Asset, caching: str, more: dict[str, str] | None = None) -> Response:
    headers = {**SECURITY, "Cache-Control": caching, "ETag": asset.etag, **(more or {})}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)

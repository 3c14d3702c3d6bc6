"""The HTTP interface: routes of /v1 as a FastAPI application, thin over the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from gateway import __version__, metrics, schemas
from gateway.decode import check_content_type
from gateway.errors import BadParameter, BlockedByPolicy, EmptyBody, MethodNotAllowed, NotFound, NotReady, PalisadeError
from gateway.middleware import BodyLimitMiddleware, RequestMiddleware
from gateway.panel import panel_png
from gateway.pipeline import Decision, Pipeline
from gateway.problems import MEDIA_TYPE, from_http_exception, from_validation, problem_response
from gateway.registry import Registry
from gateway.respond import Explain, model_detail, model_summary, predict_response
from gateway.settings import Settings
from gateway.workers import Workers

DEFAULT_TOP_K = 5
_IMAGE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One PNG, JPEG, WebP or BMP image; the content decides.",
        "content": {
            "image/*": {"schema": _IMAGE},
            "application/octet-stream": {"schema": _IMAGE},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": _IMAGE}}
            },
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": schemas.Problem.model_json_schema()}}}
    for status, text in {
        400: "`empty_body`",
        403: "`blocked_by_policy`",
        404: "`unknown_model`",
        408: "`request_timeout`",
        413: "`image_too_large`: bytes or pixels",
        415: "`unsupported_media_type`",
        422: "`undecodable_image` or `bad_parameter`",
        503: "`overloaded` or `not_ready`",
    }.items()
}

Model = Annotated[str | None, Query(description="Name of a served model; the default one if absent.")]
TopK = Annotated[int | None, Query(ge=1, description="Classes in `top`: 1 to the number of classes.")]


def create_api(settings: Settings) -> FastAPI:
    """The application; it answers 503 `not_ready` until `app.state.registry` is set."""
    app = FastAPI(
        title="Palisade",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        description="Image classification with a verdict, an explanation and neutralisation of what is suspected.",
    )
    app.state.registry = None
    app.state.workers = Workers(
        concurrency=settings.concurrency, max_waiting=settings.max_waiting, timeout=settings.request_timeout
    )
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout)
    app.add_middleware(RequestMiddleware)
    app.add_exception_handler(PalisadeError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    @app.post("/v1/predict", response_model=schemas.PredictResponse, responses=_ERRORS, openapi_extra=_BODY)
    async def predict(request: Request, model: Model = None, explain: Explain = "none", top_k: TopK = None) -> Response:
        """Classify an image, say how anomalous it is, and on request why."""
        return await _answer(request, model, top_k, explain)

    explained = {200: {"content": {"image/png": {"schema": _IMAGE}}}, **_ERRORS}

    @app.post("/v1/explain", response_model=schemas.PredictResponse, responses=explained, openapi_extra=_BODY)
    async def explain(request: Request, model: Model = None, top_k: TopK = None) -> Response:
        """The same with every map; with `Accept: image/png` one picture of them."""
        return await _answer(request, model, top_k, "all", picture=_prefers_png(request.headers.get("accept", "")))

    @app.get("/v1/models")
    async def models(request: Request) -> schemas.ModelList:
        """The models that are served."""
        registry = _registry(request)
        return schemas.ModelList(
            models=[model_summary(pipeline, default=pipeline.bundle.name == registry.default) for pipeline in registry]
        )

    @app.get("/v1/models/{name}", responses={404: _ERRORS[404]})
    async def model(request: Request, name: str) -> schemas.ModelDetail:
        """One model: its manifest and its robustness card."""
        registry = _registry(request)
        return model_detail(registry.get(name), default=name == registry.default)

    @app.get("/metrics", include_in_schema=False)
    def exposition() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> dict[str, object]:
        links = ["/v1/predict", "/v1/explain", "/v1/models", "/openapi.json", "/metrics", "/livez", "/readyz"]
        return {"name": "palisade", "version": __version__, "links": links}

    @app.api_route(
        "/{path:path}",
        include_in_schema=False,
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"],
    )
    async def unknown(request: Request, path: str) -> Response:
        # BentoML's router would answer in its own shape whatever is not matched here.
        allowed = _allowed_methods(app, request)
        if allowed:
            raise MethodNotAllowed(
                f"{request.method} {request.url.path[:200]!r} is not supported", headers={"Allow": ", ".join(allowed)}
            )
        raise NotFound(f"/{path[:200]} does not exist; GET / lists what does")


async def _answer(
    request: Request, name: str | None, top_k: int | None, explain: Explain, *, picture: bool = False
) -> Response:
    pipeline = _registry(request).get(name)
    request.state.model = pipeline.bundle.name
    top_k = _check_top_k(top_k, len(pipeline.bundle.manifest.classes))
    data = await read_image(request)
    request_id: str = request.state.request_id

    def respond(decision: Decision) -> Response:
        if decision.blocked:
            verdict = decision.raw.verdict
            raise BlockedByPolicy(f"flagged: p-value {verdict.p_value:.4g} at alpha {verdict.alpha:g}")
        if picture:
            headers = {"Vary": "Accept", "X-Palisade-Flagged": str(decision.flagged).lower()}
            return Response(panel_png(decision), media_type="image/png", headers=headers)
        body = predict_response(decision, pipeline, request_id=request_id, explain=explain, top_k=top_k)
        return Response(body.model_dump_json(), media_type="application/json")

    workers: Workers = request.app.state.workers
    return await workers.run(lambda waited: _decide(pipeline, data, waited, respond))


def _decide(pipeline: Pipeline, data: bytes, waited: float, respond: Callable[[Decision], Response]) -> Response:
    decision = pipeline.decide(data).queued(waited)
    metrics.observe(decision)
    with metrics.stage_seconds.labels("respond").time():
        return respond(decision)


async def read_image(request: Request) -> bytes:
    """The image of a request: its raw body, or the file field `image` of multipart/form-data.

    Raises `UnsupportedMediaType`, `EmptyBody`, or `BadParameter` for a field that is missing or holds text (the
    gateway fetches nothing by URL).
    """
    content_type = request.headers.get("content-type")
    if not (content_type or "").lower().startswith("multipart/form-data"):
        check_content_type(content_type)
        data = await request.body()
    else:
        async with request.form(max_files=1, max_fields=4) as form:
            field = form.get("image")
            if not isinstance(field, UploadFile):
                what = "missing" if field is None else "text"
                raise BadParameter(f"image: the form field is {what}, expected one file")
            check_content_type(field.content_type)
            data = await field.read()
    if not data:
        raise EmptyBody("the request has no image in it")
    return data


def _registry(request: Request) -> Registry:
    registry: Registry | None = request.app.state.registry
    if registry is None:
        raise NotReady("models are being loaded", headers={"Retry-After": "1"})
    return registry


def _check_top_k(top_k: int | None, classes: int) -> int:
    if top_k is not None and top_k > classes:
        raise BadParameter(f"top_k: must be 1 to {classes}, the number of classes (got {top_k})")
    return min(DEFAULT_TOP_K, classes) if top_k is None else top_k


def _prefers_png(accept: str) -> bool:
    quality = {"image/png": 0.0, "application/json": 0.0}
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        q = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        if media_type in quality:
            quality[media_type] = float(q) if q.replace(".", "", 1).isdecimal() else 0.0
    return quality["image/png"] > quality["application/json"]


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    methods: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] is Match.PARTIAL:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PalisadeError)  # noqa: S101  # registered for this class
    return problem_response(error, request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return problem_response(from_http_exception(error, request.url.path, request.method), request.scope)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return problem_response(from_validation(error), request.scope)


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody is left to read it; the status is for the log

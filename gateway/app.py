"""The HTTP interface as a FastAPI application: routes of each transport, middleware, one shape of errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from gateway import __version__
from gateway.access.auth import Auth
from gateway.access.reactions import Reactions
from gateway.answers.certificate_request import CertificatePolicy
from gateway.answers.latency import LatencyQuantum
from gateway.audit.trail import Audit
from gateway.campaigns.watch import Campaigns
from gateway.errors import MethodNotAllowed, NotFound, PalisadeError
from gateway.http.authentication import AuthMiddleware, describe
from gateway.http.middleware import BodyLimitMiddleware, RequestMiddleware
from gateway.http.problems import from_http_exception, from_validation, problem_response
from gateway.http.routes import admin, campaigns, console, report, v1
from gateway.http.routes import events as audit_routes
from gateway.http.routes import session as login
from gateway.http.routes.oip import routes as oip
from gateway.inference.dispatch import Dispatcher
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.shared_state import Store

ROUTERS = (
    v1.router,
    oip.router,
    oip.probes,
    login.router,
    admin.router,
    audit_routes.router,
    campaigns.router,
    report.router,
    console.samples_router,
    console.router,
)


class Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the ways to authenticate."""
        return describe(super().openapi())


def create_api(settings: Settings) -> FastAPI:
    """The application; it answers 503 `not_ready` until `app.state.registry` is set."""
    app = Api(
        title="Palisade",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        description="Image classification with a verdict, an explanation and neutralisation of what is suspected.\n\n"
        "Every error is problem+json with a stable `code`. Beside those of each route, any request may be answered "
        "`bad_request` (400), `not_found` (404), `method_not_allowed` (405), `request_timeout` (408), `head_too_large` "
        "(431) or `internal_error` (500).",
    )
    app.state.settings = settings
    app.state.registry = None
    # Of this process alone; the service puts in its place what all workers of a server agree on.
    app.state.ready = lambda: app.state.registry is not None
    app.state.rollout = None
    app.state.dispatcher = Dispatcher(settings)
    app.state.store = Store(settings.state_dir)
    reactions = Reactions(settings.campaign_reaction, settings.campaign_rate)
    app.state.auth = Auth(settings, app.state.store, reactions.apply)
    app.state.audit = Audit(settings)
    app.state.certificates = CertificatePolicy(settings.require, settings.certify_share)
    app.state.campaigns = Campaigns(settings, reactions)
    app.state.quantum = LatencyQuantum(settings.label_quantum)
    app.user_middleware.extend(layers(app))
    app.add_exception_handler(PalisadeError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    for router in ROUTERS:
        app.include_router(router)
    _add_operations(app)
    return app


def layers(app: FastAPI) -> list[Middleware]:
    """What stands before every route of `app`, the outermost first."""
    settings: Settings = app.state.settings
    return [
        Middleware(RequestMiddleware),
        Middleware(
            BodyLimitMiddleware,
            max_bytes=settings.max_body_bytes,
            timeout=settings.body_timeout,
            refusal=app.state.dispatcher.refusal,
        ),
        Middleware(AuthMiddleware, auth=app.state.auth),
    ]


def _add_operations(app: FastAPI) -> None:
    @app.get("/metrics", include_in_schema=False)
    def exposition() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs.json", include_in_schema=False)
    async def document() -> dict[str, Any]:
        # Where BentoML's users look for it; BentoML's own would not know our routes.
        return app.openapi()

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        if console.wants_page(request):
            return console.page(request)
        links = ["/v1/predict", "/v1/explain", "/v1/models", "/openapi.json", "/metrics", "/livez", "/readyz"]
        return JSONResponse({"name": "palisade", "version": __version__, "links": links}, headers={"Vary": "Accept"})

    @app.api_route(
        "/{path:path}",
        include_in_schema=False,
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"],
    )
    async def unknown(request: Request, path: str) -> Response:
        # BentoML's router would answer unmatched paths in its own shape.
        allowed = _allowed_methods(app, request)
        if allowed:
            raise MethodNotAllowed(
                f"{request.method} {request.url.path[:200]!r} is not supported", headers={"Allow": ", ".join(allowed)}
            )
        raise NotFound(f"/{path[:200]} does not exist; GET / lists what does")


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    methods: set[str] = set()
    # The application does not list the methods of an included router's routes.
    for route in [*app.routes, *(route for router in ROUTERS for route in router.routes)]:
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

"""Errors as HTTP answers: one shape, `application/problem+json`, for everything that goes wrong (RFC 9457)."""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.errors import (
    BadParameter,
    BlockedByPolicy,
    MethodNotAllowed,
    NotCertified,
    NotFound,
    PalisadeError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.telemetry import metrics

MEDIA_TYPE = "application/problem+json"
UPSTREAM = (UpstreamUnavailable, UpstreamTimeout, UpstreamInvalid)
"""Errors of models whose network another server runs."""


class Problem(BaseModel):
    """An error as RFC 9457 describes it, with a stable `code`."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str | None = None


class OipProblem(Problem):
    """The same with `error`, the detail once more, where clients of the Open Inference Protocol expect it."""

    error: str


PREDICT_ROUTES = re.compile(r"/v1/(predict|explain)|/v2/models/[^/]+(/versions/[^/]+)?/infer")
OIP_ROUTES = re.compile(r"/v2(/.*)?")


def problem_docs(*errors: type[PalisadeError], schema: type[Problem] = Problem) -> dict[int | str, dict[str, Any]]:
    """What `errors` look like, by status, for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": schema.model_json_schema()}}
    return {
        status: {
            "description": " or ".join(sorted(f"`{error.code}`" for error in errors if error.status == status)),
            "content": content,
        }
        for status in sorted({error.status for error in errors})
    }


def problem_response(error: PalisadeError, scope: MutableMapping[str, Any]) -> Response:
    """The answer to a request (its ASGI scope) that failed with `error`, which is counted."""
    state = scope.get("state", {})
    metrics.rejected_total.labels(error.code).inc()
    # An input whose answer is withheld was decided on, and is counted with the decisions.
    if PREDICT_ROUTES.fullmatch(scope["path"]) and not isinstance(error, BlockedByPolicy | NotCertified):
        outcome = "rejected" if error.status < 500 else "failed"
        metrics.requests_total.labels(state.get("model", ""), outcome).inc()
    return uncounted_response(error, scope)


def uncounted_response(error: PalisadeError, scope: MutableMapping[str, Any]) -> Response:
    """The same for probes, which are no requests of a caller and are not counted."""
    request_id = scope.get("state", {}).get("request_id")
    body = error.problem(request_id and f"urn:palisade:request:{request_id}")
    if OIP_ROUTES.fullmatch(scope["path"]):
        body["error"] = error.detail
    return Response(json.dumps(body), status_code=error.status, media_type=MEDIA_TYPE, headers=error.headers)


def from_http_exception(error: HTTPException, path: str, method: str) -> PalisadeError:
    """An error of the framework as one of ours."""
    if error.status_code == 405:
        return MethodNotAllowed(f"{method[:20]} {path[:200]!r} is not supported", headers=dict(error.headers or {}))
    if error.status_code == 404:
        return NotFound(f"{path[:200]!r} does not exist; GET / lists what does")
    if error.status_code < 500:
        return BadParameter(str(error.detail)[:300])
    return PalisadeError("unexpected failure; the log has the reason")


def from_validation(error: RequestValidationError) -> BadParameter:
    """The first parameter that the framework refused, with its value and what is allowed."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    shown = repr(first.get("input"))[:80]
    return BadParameter(f"{where}: {first['msg']} (got {shown})")

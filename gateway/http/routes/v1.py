"""The routes of /v1: predict, explain, models; thin over dispatcher and pipeline."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from gateway.answers import schemas
from gateway.answers.certificate_request import Asked, Certify, uncertified, wanted
from gateway.answers.disclosure import check_explain, disclose, disclose_model, refusal
from gateway.answers.latency import LatencyQuantum
from gateway.answers.panel import panel_png
from gateway.answers.respond import Explain, model_detail, model_summary, predict_response
from gateway.core.certificate import Wanted
from gateway.core.decision import Decision
from gateway.core.decode import check_content_type
from gateway.errors import (
    BadParameter,
    BlockedByPolicy,
    EmptyBody,
    Forbidden,
    ImageTooLarge,
    KeySuspended,
    NotCertified,
    NotReady,
    Overloaded,
    RateLimited,
    RequestTimeout,
    Unauthorized,
    UndecodableImage,
    UnknownModel,
    UnsupportedMediaType,
)
from gateway.http.dependencies import caller_of, dispatcher_of, recorder, registry_of
from gateway.http.problems import UPSTREAM, problem_docs
from gateway.http.strict import StrictRoute, query_names
from gateway.names import nearest, unknown
from gateway.telemetry import metrics

DEFAULT_TOP_K = 5
_IMAGE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One PNG, JPEG, WebP or BMP image; its content decides, not the declared type.",
        "content": {
            "image/*": {"schema": _IMAGE},
            "application/octet-stream": {"schema": _IMAGE},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["image"], "properties": {"image": _IMAGE}}
            },
        },
    }
}
_ERRORS = problem_docs(
    EmptyBody,
    Unauthorized,
    BlockedByPolicy,
    NotCertified,
    Forbidden,
    KeySuspended,
    UnknownModel,
    RequestTimeout,
    ImageTooLarge,
    UnsupportedMediaType,
    UndecodableImage,
    BadParameter,
    RateLimited,
    Overloaded,
    NotReady,
    *UPSTREAM,
)

Model = Annotated[str | None, Query(description="Name of a served model; the default one if absent.")]
TopK = Annotated[int | None, Query(ge=1, description="Number of classes in `top`, from 1 to all.")]


def _asked(
    certify: Annotated[
        Certify,
        Query(
            description="`patch`: a certificate against a square patch anywhere in the image. `small_field`: the same, "
            "by the network of small fields alone, in one forward pass."
        ),
    ] = "none",
    patch_side: Annotated[
        int | None, Query(ge=1, description="Side of that patch, in pixels of the network's input.")
    ] = None,
    certify_level: Annotated[
        Wanted | None,
        Query(description="The highest level that is tried (`proved`); `agreed` takes one round of masks."),
    ] = None,
    require: Annotated[
        Wanted | None, Query(description="Level below which the answer is refused (403 `not_certified`).")
    ] = None,
) -> Asked:
    return Asked(certify, patch_side, certify_level, require)


Certificates = Annotated[Asked, Depends(_asked)]

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post("/predict", response_model=schemas.Disclosed, responses=_ERRORS, openapi_extra=_BODY)
async def predict(
    request: Request, asked: Certificates, model: Model = None, explain: Explain = "none", top_k: TopK = None
) -> Response:
    """Classify an image and report how anomalous it is; on request, explain and certify the label."""
    return await answer(request, model, top_k, explain, asked)


@router.post(
    "/explain",
    response_model=schemas.Disclosed,
    responses={200: {"content": {"image/png": {"schema": _IMAGE}}}, **_ERRORS},
    openapi_extra=_BODY,
)
async def explain(request: Request, asked: Certificates, model: Model = None, top_k: TopK = None) -> Response:
    """The same with every map; `Accept: image/png` returns one picture of them."""
    return await answer(request, model, top_k, "all", asked, picture=_prefers_png(request.headers.get("accept", "")))


@router.get("/models", responses=problem_docs(Unauthorized, KeySuspended, RateLimited, NotReady))
async def models(request: Request) -> schemas.ModelList:
    """The models that are served."""
    registry, disclosure = registry_of(request), caller_of(request).disclosure
    summaries = [model_summary(pipeline, default=pipeline.bundle.name == registry.default) for pipeline in registry]
    return schemas.ModelList(models=[disclose_model(summary, disclosure) for summary in summaries])


@router.get(
    "/models/{name}",
    response_model=schemas.ModelDetail | schemas.ModelSummary | schemas.ModelLabel,
    responses=problem_docs(Unauthorized, KeySuspended, UnknownModel, RateLimited, NotReady),
)
async def model(request: Request, name: str) -> schemas.ModelLabel:
    """One model: at disclosure `full` with its manifest and its robustness card."""
    registry = registry_of(request)
    detail = model_detail(registry.get(name), default=name == registry.default)
    return disclose_model(detail, caller_of(request).disclosure)


async def answer(
    request: Request, name: str | None, top_k: int | None, explain: Explain, asked: Asked, *, picture: bool = False
) -> Response:
    """The answer to the image in a request, by the model `name` (None: the default one); `picture`: as one PNG."""
    disclosure = caller_of(request).disclosure
    check_explain(disclosure, explain, picture=picture)
    pipeline = registry_of(request).get(name)
    request.state.model = pipeline.bundle.name
    top_k = _check_top_k(top_k, len(pipeline.bundle.manifest.classes))
    certify = wanted(asked, pipeline, request.app.state.certificates, disclosure, votes=explain == "all")
    data = await read_image(request)
    start = time.perf_counter()
    dispatcher = dispatcher_of(request)
    explained = explain != "none"
    decision = await dispatcher.decide(
        pipeline, data, explain=explained, record=recorder(request, data), certify=certify
    )
    quantum: LatencyQuantum = request.app.state.quantum
    if not explained:
        quantum.observe(decision, time.perf_counter() - start)
    if decision.blocked:
        await quantum.release(start, disclosure)
        raise refusal(decision, disclosure)
    if decision.uncertified:
        await quantum.release(start, disclosure)
        raise uncertified(decision, disclosure)

    def respond() -> Response:
        with metrics.stage_seconds.labels("respond").time():
            if picture:
                return _picture(decision)
            body = predict_response(
                decision, pipeline, request_id=request.state.request_id, explain=explain, top_k=top_k
            )
            return Response(disclose(body, disclosure).model_dump_json(), media_type="application/json")

    response = await dispatcher.in_thread(respond) if explained else respond()
    await quantum.release(start, disclosure)
    return response


def _picture(decision: Decision) -> Response:
    headers = {"Vary": "Accept", "X-Palisade-Flagged": str(decision.flagged).lower()}
    return Response(panel_png(decision), media_type="image/png", headers=headers)


async def read_image(request: Request) -> bytes:
    """The image of a request: its raw body, or the file field `image` of multipart/form-data, which has no other.

    Raises `UnsupportedMediaType`, `EmptyBody`, or `BadParameter` for a form that is not one file named `image`: the
    gateway fetches nothing by URL, and parameters are read from the query alone, before the body is.
    """
    content_type = request.headers.get("content-type")
    if not (content_type or "").lower().startswith("multipart/form-data"):
        check_content_type(content_type)
        data = await request.body()
    else:
        async with request.form(max_files=1, max_fields=4) as form:
            field = _image_field(form, query_names(request))
            check_content_type(field.content_type)
            data = await field.read()
    if not data:
        raise EmptyBody("the request has no image in it")
    return data


def _image_field(form: FormData, parameters: list[str]) -> UploadFile:
    for name in form.keys() - {"image"}:
        parameter = nearest(name, parameters)
        if parameter is not None:
            raise BadParameter(
                f"form field {name[:60]!r}: the form has the file 'image' alone; give {parameter!r} in the query, "
                f"as ?{parameter}=..."
            )
        if "image" in form or nearest(name, ["image"]):
            raise BadParameter(unknown("form field", name, ["image"]))
    fields = form.getlist("image")
    if len(fields) != 1 or not isinstance(fields[0], UploadFile):
        what = "missing" if not fields else "text" if len(fields) == 1 else "given twice"
        raise BadParameter(f"image: the form field is {what}, expected one file")
    return fields[0]


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

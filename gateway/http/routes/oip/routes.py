"""The Open Inference Protocol v2 (KServe, specification/protocol/inference_rest.md) with binary tensors, under /v2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from gateway import __version__
from gateway.access.keys import Disclosure
from gateway.access.limits import charge_images
from gateway.answers.certificate_request import uncertified
from gateway.answers.certificate_request import wanted as certificate_wanted
from gateway.answers.disclosure import refusal, shows
from gateway.answers.latency import LatencyQuantum
from gateway.core.certificate import CertificateWanted
from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline
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
    PalisadeError,
    RateLimited,
    RequestTimeout,
    Unauthorized,
    UndecodableImage,
    UnknownModel,
    UnknownVersion,
    UnsupportedMediaType,
)
from gateway.http.bodies import StrictBody
from gateway.http.dependencies import caller_of, check_ready, dispatcher_of, recorder, registry_of
from gateway.http.problems import UPSTREAM, OipProblem, problem_docs
from gateway.http.routes.oip.images import read_images
from gateway.http.routes.oip.outputs import OUTPUTS, parameters_of, shape_of, values_of, visible, wanted
from gateway.http.routes.oip.tensors import (
    InferRequest,
    InferResponse,
    Parameters,
    asked_certificate,
    read_request,
    write_response,
    write_tensor,
)
from gateway.http.strict import StrictRoute
from gateway.telemetry import metrics

MAX_BATCH = 64
EXTENSIONS = ["binary_tensor_data"]

router = APIRouter(prefix="/v2", route_class=StrictRoute)
# Monitors and orchestrators call these, with query strings of their own.
probes = APIRouter(prefix="/v2")


class Live(BaseModel):
    live: bool = True


class Ready(BaseModel):
    ready: bool = True


class ModelReady(BaseModel):
    name: str
    ready: bool = True


class ServerMetadata(BaseModel):
    name: str = "palisade"
    version: str = __version__
    extensions: list[str] = EXTENSIONS


class TensorMetadata(BaseModel):
    """`shape` has -1 for the batch axis."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """`inputs` are what a request must have; `parameters` describes what it may send in their place."""

    name: str
    versions: list[str] | None = None
    platform: str = "palisade_onnx"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: Parameters


class IndexRequest(StrictBody):
    """`ready` lists only models that are ready, as all served ones are."""

    ready: bool = False


class RepositoryEntry(BaseModel):
    name: str
    version: str = ""
    state: str = "READY"
    reason: str = ""


_INDEX: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": IndexRequest.model_json_schema()}}}
}
_READ_ERRORS = problem_docs(
    Unauthorized, Forbidden, KeySuspended, UnknownModel, UnknownVersion, RateLimited, NotReady, schema=OipProblem
)
_BINARY = {"type": "string", "format": "binary"}
_INFER: dict[str, Any] = {
    "response_model": InferResponse,
    "response_model_exclude_none": True,
    "responses": {
        200: {"content": {"application/octet-stream": {"schema": _BINARY}}},
        **problem_docs(
            EmptyBody,
            Unauthorized,
            BlockedByPolicy,
            NotCertified,
            Forbidden,
            KeySuspended,
            UnknownModel,
            UnknownVersion,
            RequestTimeout,
            ImageTooLarge,
            UnsupportedMediaType,
            UndecodableImage,
            BadParameter,
            RateLimited,
            Overloaded,
            NotReady,
            *UPSTREAM,
            PalisadeError,
            schema=OipProblem,
        ),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "One input: `pixels`, UINT8 (N, H, W, C) or FP32 (N, C, H, W) in [0, 1], or `image`, BYTES "
            "(N): PNG, JPEG, WebP or BMP files, base64 in JSON. Binary data follow the JSON, whose length "
            "`Inference-Header-Content-Length` states.",
            "content": {
                "application/json": {"schema": InferRequest.model_json_schema()},
                "application/octet-stream": {"schema": _BINARY},
            },
        },
        "parameters": [
            {"name": "Inference-Header-Content-Length", "in": "header", "schema": {"type": "integer", "minimum": 0}}
        ],
    },
}


@router.get("")
async def server() -> ServerMetadata:
    """The server and the extensions of the protocol that it speaks."""
    return ServerMetadata()


@probes.get("/health/live")
async def live() -> Live:
    """Whether the server answers requests."""
    return Live()


@probes.get("/health/ready", responses=problem_docs(NotReady, schema=OipProblem))
def ready(request: Request) -> Ready:
    """Whether the server is ready, as `/readyz` reports it."""
    check_ready(request)
    return Ready()


@probes.get("/models/{model}/ready", responses=_READ_ERRORS)
@probes.get("/models/{model}/versions/{version}/ready", responses=_READ_ERRORS)
async def model_ready(request: Request, model: str, version: str | None = None) -> ModelReady:
    """Whether a model is ready."""
    pipeline = _pipeline(request, model, version)
    if pipeline.engine.problem is not None:
        raise NotReady(pipeline.engine.problem, headers={"Retry-After": "1"})
    return ModelReady(name=pipeline.bundle.name)


@router.get("/models/{model}", responses=_READ_ERRORS, response_model_exclude_none=True)
@router.get("/models/{model}/versions/{version}", responses=_READ_ERRORS, response_model_exclude_none=True)
async def model_metadata(request: Request, model: str, version: str | None = None) -> ModelMetadata:
    """Inputs of a model, and the outputs that the caller may ask for."""
    pipeline = _pipeline(request, model, version)
    disclosure = caller_of(request).disclosure
    manifest = pipeline.bundle.manifest
    spec = manifest.input
    return ModelMetadata(
        name=manifest.name,
        versions=sorted(registry_of(request).served(model).pipelines) if shows(disclosure, "verdict") else None,
        inputs=[TensorMetadata(name="pixels", datatype="UINT8", shape=[-1, spec.height, spec.width, spec.channels])],
        outputs=[
            TensorMetadata(name=name, datatype=OUTPUTS[name].datatype, shape=[-1, *shape_of(name, manifest)])
            for name in visible(disclosure)
        ],
        parameters={
            "max_batch_size": _max_batch(request),
            "alternative_inputs": f"pixels FP32 [-1,{spec.channels},{spec.height},{spec.width}] in [0, 1]; "
            "image BYTES [-1]: PNG, JPEG, WebP or BMP files",
        },
    )


@router.post("/repository/index", responses=_READ_ERRORS, openapi_extra=_INDEX)
async def repository_index(request: Request) -> list[RepositoryEntry]:
    """The models that are served, by version."""
    body = await request.body()
    if body:
        IndexRequest.read(body)
    registry = registry_of(request)
    if not shows(caller_of(request).disclosure, "verdict"):
        return [RepositoryEntry(name=name) for name in registry.names]
    return [RepositoryEntry(name=name, version=version) for name, version in sorted(registry.loaded)]


@router.post("/models/{model}/infer", **_INFER)
@router.post("/models/{model}/versions/{version}/infer", **_INFER)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Classify images and judge them: the verdict is in `parameters` and outputs, maps and scores when asked for."""
    pipeline = _pipeline(request, model, version)
    request.state.model = pipeline.bundle.name
    disclosure = caller_of(request).disclosure
    dispatcher = dispatcher_of(request)
    body = await request.body()
    if not body:
        raise EmptyBody("the request has no body")
    start = time.perf_counter()
    header_length, max_batch = _header_length(request), _max_batch(request)

    def read() -> tuple[InferRequest, dict[str, bool], CertificateWanted | None, Sequence[np.ndarray | bytes]]:
        parsed, inputs = read_request(body, header_length)
        if parsed.model_name not in (None, model):
            raise BadParameter(f"model_name: {parsed.model_name[:80]!r} is not the model of the path, {model[:80]!r}")
        asked, policy = asked_certificate(parsed.parameters), request.app.state.certificates
        certify = certificate_wanted(asked, pipeline, policy, disclosure)
        names = wanted(parsed, disclosure, certified=certify is not None)
        return parsed, names, certify, read_images(inputs, pipeline.bundle.manifest.input, max_batch)

    parsed, names, certify, images = await dispatcher.parse(read)
    charge_images(request, len(images))
    explained = any(OUTPUTS[name].explained for name in names)
    decisions = await _decide(request, pipeline, images, certify, explain=explained)
    quantum: LatencyQuantum = request.app.state.quantum
    if len(images) == 1 and not explained:
        quantum.observe(decisions[0], time.perf_counter() - start)
    if len(decisions) == 1 and decisions[0].blocked:
        await quantum.release(start, disclosure)
        raise refusal(decisions[0], disclosure)
    if len(decisions) == 1 and decisions[0].uncertified:
        await quantum.release(start, disclosure)
        raise uncertified(decisions[0], disclosure)

    def respond() -> Response:
        with metrics.stage_seconds.labels("respond").time():
            return _response(parsed.id or "", names, decisions, pipeline, disclosure)

    response = await dispatcher.in_thread(respond) if explained or len(decisions) > 1 else respond()
    await quantum.release(start, disclosure, len(images))
    return response


async def _decide(
    request: Request,
    pipeline: Pipeline,
    images: Sequence[np.ndarray | bytes],
    certify: CertificateWanted | None,
    *,
    explain: bool,
) -> list[Decision]:
    """The decisions of a batch, whose images enter the micro-batcher together; the first failure ends the batch."""
    dispatcher = dispatcher_of(request)

    def work(i: int, image: np.ndarray | bytes) -> Coroutine[Any, Any, Decision]:
        if isinstance(image, bytes):
            record = recorder(request, image, index=i)
            return dispatcher.decide(pipeline, image, explain=explain, record=record, certify=certify)
        record = recorder(request, image.tobytes(), index=i)
        return dispatcher.decide_image(pipeline, image, explain=explain, record=record, certify=certify)

    async def numbered(i: int, image: np.ndarray | bytes) -> Decision:
        try:
            return await work(i, image)
        except PalisadeError as error:
            if len(images) == 1:
                raise
            raise type(error)(f"image {i} of 0 to {len(images) - 1}: {error.detail}", headers=error.headers) from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(numbered(i, image)) for i, image in enumerate(images)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _response(
    identifier: str, names: dict[str, bool], decisions: list[Decision], pipeline: Pipeline, disclosure: Disclosure
) -> Response:
    """`names` are the outputs to send, and which of them as binary data."""
    manifest = pipeline.bundle.manifest
    written = [
        write_tensor(name, OUTPUTS[name].datatype, values_of(name, decisions, manifest, disclosure), binary=binary)
        for name, binary in names.items()
    ]
    response = InferResponse(
        model_name=manifest.name,
        model_version=manifest.version if shows(disclosure, "verdict") else None,
        id=identifier or None,
        parameters=parameters_of(decisions, disclosure),
        outputs=[tensor for tensor, _ in written],
    )
    body, headers = write_response(response, [blob for _, blob in written])
    return Response(body, headers=headers)


def _pipeline(request: Request, model: str, version: str | None) -> Pipeline:
    if version is not None and not shows(caller_of(request).disclosure, "verdict"):
        raise Forbidden("versions are not for callers at disclosure label: name the model alone")
    return registry_of(request).get(model, version)


def _header_length(request: Request) -> str | None:
    lengths = set(request.headers.getlist("inference-header-content-length"))
    if len(lengths) > 1:
        raise BadParameter("Inference-Header-Content-Length: given several times with different values")
    return lengths.pop() if lengths else None


def _max_batch(request: Request) -> int:
    """Largest number of images in a request: as many as may wait at once, since more could never be admitted."""
    settings = request.app.state.settings
    return int(min(MAX_BATCH, settings.max_waiting + settings.decode_threads))

"""The routes of /v1/admin/models: which versions exist, and which of them are run (role `admin`).

Callers name models and versions, never paths: only bundles in the configured folders can be loaded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import date
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from gateway.errors import (
    BadParameter,
    BundleError,
    CardRefused,
    Conflict,
    Forbidden,
    NotReady,
    StoreUnavailable,
    Unauthorized,
    UnknownModel,
    UnknownVersion,
    UntrustedBundle,
)
from gateway.http.authentication import require
from gateway.http.bodies import StrictBody
from gateway.http.dependencies import caller_of
from gateway.http.problems import problem_docs
from gateway.http.strict import StrictRoute
from gateway.versions.catalogue import Found
from gateway.versions.registry import Versions
from gateway.versions.rollout import Rollout

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1

State = Literal["active", "shadow", "loaded", "available"]
Wait = Annotated[float, Query(ge=0.0, le=60.0, description="Seconds to wait until every worker runs the change.")]


class VersionRequest(StrictBody):
    version: str = Field(max_length=80)


class ShadowRequest(StrictBody):
    version: str | None = Field(max_length=80, description="null ends shadow mode.")


class VersionState(BaseModel):
    version: str
    state: State
    created: date | None = Field(
        description="null when the folder was removed; the version is then served from memory."
    )


class ModelState(BaseModel):
    name: str
    active: str | None
    previous: str | None = Field(description="What `rollback` would activate.")
    shadow: str | None
    versions: list[VersionState]


class WorkerState(BaseModel):
    pid: int
    ready: bool
    generation: int
    problem: str | None = Field(description="Why the worker does not run the server's current generation.")


class RefusedBundle(BaseModel):
    folder: str
    reason: str


class ServerState(BaseModel):
    """`generation` grows with each change; `converged` states whether every worker runs it."""

    generation: int
    converged: bool
    workers: list[WorkerState]
    models: list[ModelState]
    refused: list[RefusedBundle]


router = APIRouter(prefix="/v1/admin/models", dependencies=[Depends(require("admin"))], route_class=StrictRoute)

_READING = problem_docs(Unauthorized, Forbidden, NotReady, StoreUnavailable)
_CHANGING = problem_docs(
    Unauthorized,
    Forbidden,
    NotReady,
    StoreUnavailable,
    UnknownModel,
    UnknownVersion,
    BundleError,
    UntrustedBundle,
    CardRefused,
    Conflict,
    BadParameter,
)


@router.get("", responses=_READING)
async def models(request: Request) -> ServerState:
    """Every version on disk and in memory, and what each worker runs."""
    rollout = _rollout(request)
    return await asyncio.to_thread(_state, rollout)


@router.post("/scan", responses=_READING)
async def scan(request: Request) -> ServerState:
    """Read and check every file again, then list as above."""
    rollout = _rollout(request)
    await asyncio.to_thread(rollout.catalogue.look, again=True)
    return await asyncio.to_thread(_state, rollout)


@router.post("/{name}/load", responses=_CHANGING)
async def load(request: Request, name: str, body: VersionRequest, wait: Wait = 0.0) -> ServerState:
    """Keep a version loaded and warm beside the active one, and addressable by its version."""
    return await _change(request, lambda rollout: rollout.load(name, body.version), wait)


@router.post("/{name}/activate", responses=_CHANGING)
async def activate(request: Request, name: str, body: VersionRequest, wait: Wait = 0.0) -> ServerState:
    """Make a version the active one; requests in flight finish on the one they started on. Shadow mode ends."""
    return await _change(request, lambda rollout: rollout.activate(name, body.version), wait)


@router.post("/{name}/rollback", responses=_CHANGING)
async def rollback(request: Request, name: str, wait: Wait = 0.0) -> ServerState:
    """Make the previously active version active again."""
    return await _change(request, lambda rollout: rollout.rollback(name), wait)


@router.post("/{name}/shadow", responses=_CHANGING)
async def shadow(request: Request, name: str, body: ShadowRequest, wait: Wait = 0.0) -> ServerState:
    """Score a version on the same images as the active one, without answering; metric `palisade_shadow_total`."""
    return await _change(request, lambda rollout: rollout.shadow(name, body.version), wait)


@router.post("/{name}/unload", responses=_CHANGING)
async def unload(request: Request, name: str, body: VersionRequest, wait: Wait = 0.0) -> ServerState:
    """End what `load` began; the active version and the shadow cannot be unloaded."""
    return await _change(request, lambda rollout: rollout.unload(name, body.version), wait)


def _rollout(request: Request) -> Rollout:
    rollout: Rollout | None = request.app.state.rollout
    if rollout is None:
        raise NotReady("models are being loaded", headers={"Retry-After": "1"})
    return rollout


async def _change(request: Request, change: Callable[[Rollout], int], wait: float) -> ServerState:
    rollout = _rollout(request)
    generation = await asyncio.to_thread(change, rollout)
    log.info("%r by %s: generation %d", request.url.path, caller_of(request).key_id or "this machine", generation)
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline and not await asyncio.to_thread(rollout.converged, generation):
        await asyncio.sleep(_POLL_SECONDS)
    return await asyncio.to_thread(_state, rollout)


def _state(rollout: Rollout) -> ServerState:
    wanted, generation = rollout.wanted()
    found, refused = rollout.catalogue.look()
    names = sorted({*wanted, *(bundle.name for bundle in found)})
    return ServerState(
        generation=generation,
        converged=rollout.converged(generation),
        workers=[WorkerState(**vars(worker)) for worker in rollout.workers()],
        models=[
            _model(name, wanted.get(name, Versions()), [bundle for bundle in found if bundle.name == name])
            for name in names
        ],
        refused=[RefusedBundle(folder=str(entry.folder), reason=entry.reason) for entry in refused],
    )


def _model(name: str, wanted: Versions, found: list[Found]) -> ModelState:
    created = {bundle.version: bundle.manifest.created for bundle in found}

    def state(version: str) -> State:
        if version == wanted.active:
            return "active"
        return "shadow" if version == wanted.shadow else "loaded" if version in wanted.loaded else "available"

    return ModelState(
        name=name,
        active=wanted.active,
        previous=wanted.previous,
        shadow=wanted.shadow,
        versions=[
            VersionState(version=version, state=state(version), created=created.get(version))
            for version in dict.fromkeys([*created, *wanted.loaded])
        ],
    )

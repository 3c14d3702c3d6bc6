"""What the routes share, by way of `app.state`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Request

from gateway.access.auth import Caller
from gateway.audit.trail import Audit
from gateway.campaigns.watch import Campaigns
from gateway.core.decision import Decision
from gateway.errors import NOT_READY, NotReady
from gateway.inference.dispatch import Dispatcher, Record
from gateway.versions.registry import Registry

T = TypeVar("T")

# Threads of our own: a database that hangs must not occupy those that serve /metrics.
_threads = CapacityLimiter(4)


def registry_of(request: Request) -> Registry:
    """The models that are served; `NotReady` until they are loaded."""
    registry: Registry | None = request.app.state.registry
    if registry is None:
        raise NotReady("models are being loaded", headers={"Retry-After": "1"})
    return registry


def check_ready(request: Request) -> None:
    """Raises `NotReady` unless the server is ready; `/readyz` and `/v2/health/ready` both use it."""
    registry: Registry | None = request.app.state.registry
    if registry is not None and registry.problem is not None:
        raise NotReady(registry.problem, headers={"Retry-After": "1"})
    if not request.app.state.ready():
        raise NotReady(NOT_READY, headers={"Retry-After": "1"})


def dispatcher_of(request: Request) -> Dispatcher:
    """The dispatcher, which takes images through the pipeline."""
    dispatcher: Dispatcher = request.app.state.dispatcher
    return dispatcher


def recorder(request: Request, data: bytes, *, index: int = 0) -> Record:
    """A function that stores the decision on `data`, the image `index` of a request, for review."""
    audit: Audit = request.app.state.audit
    campaigns: Campaigns = request.app.state.campaigns
    caller, request_id = caller_of(request), request.state.request_id

    async def record(decision: Decision) -> bool:
        # After the answer: a campaign is many requests, of which each is judged without the others.
        asyncio.get_running_loop().call_soon(partial(campaigns.offer, decision, caller, request_id, index=index))
        return await audit.record(decision, caller, request_id, data, index=index)

    return record


def caller_of(request: Request) -> Caller:
    """Who sent the request (`AuthMiddleware` has let them in)."""
    caller: Caller = request.state.caller
    return caller


async def in_store_thread(job: Callable[[], T]) -> T:
    """Run `job`, which asks the audit database, away from the event loop."""
    return await anyio.to_thread.run_sync(job, limiter=_threads)

"""The two ways to the application: through all of its routes, or by the front door where a request is plain."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from starlette.types import ASGIApp

from gateway.app import layers
from gateway.front_door import FrontDoor

Way = Literal["routes", "front door"]
WAYS: tuple[Way, ...] = ("routes", "front door")


def by(way: Way, app: FastAPI) -> FastAPI:
    """The application, whose requests `entrance` then sends that way."""
    app.state.entrance = FrontDoor(app, api=app, layers=layers(app)) if way == "front door" else app
    return app


def entrance(app: FastAPI) -> ASGIApp:
    """What a request to the application is sent to: all of its routes, unless `by` has said otherwise."""
    found: ASGIApp = getattr(app.state, "entrance", app)
    return found

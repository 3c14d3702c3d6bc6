"""What requests may hold, checked alike on every route: declared query parameters, codings and bodies.

A parameter that is ignored gives an answer to another question than the one that was asked. Routes of `StrictRoute`
refuse it; probes, /metrics and pages for browsers are of FastAPI's own class and ignore query strings, because
monitors, load balancers and caches append their own and must not take a healthy server for a broken one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from typing import Any, cast

from fastapi import Depends, Request, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.responses import Response

from gateway.errors import BadParameter, UnsupportedMediaType
from gateway.http.content_coding import content_coding, inflating
from gateway.http.problems import OIP_ROUTES, PREDICT_ROUTES, OipProblem, Problem, problem_docs
from gateway.names import unknown

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_NO_BODY = (b"", b"{}", b"null")  # as clients send that have no body to send


class StrictRoute(APIRoute):
    """A route that refuses what it does not declare.

    Raises `BadParameter` for an undeclared query parameter, for one that is given twice with different values, and for
    a body where it takes none; `UnsupportedMediaType` for codings. Both are in its OpenAPI description.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        dependencies: Sequence[params.Depends] | None = None,
        responses: dict[int | str, dict[str, Any]] | None = None,
        methods: set[str] | list[str] | None = None,
        **options: Any,
    ) -> None:
        schema: type[Problem] = OipProblem if OIP_ROUTES.fullmatch(path) else Problem
        errors = (BadParameter, UnsupportedMediaType) if _WITH_BODY & set(methods or ()) else (BadParameter,)
        super().__init__(
            path,
            endpoint,
            # The last of the router's dependencies, so that a caller who may not use the route learns that first.
            dependencies=[*(dependencies or ()), Depends(self._check)],
            responses={**problem_docs(*errors, schema=schema), **(responses or {})},
            methods=methods,
            **options,
        )

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, after the checks that come before a body is read."""
        handler = super().get_route_handler()
        has_body, images = bool(_WITH_BODY & set(self.methods or ())), PREDICT_ROUTES.fullmatch(self.path) is not None

        async def handle(request: Request) -> Response:
            coding = content_coding(request.headers, accepted=images) if has_body else None
            if coding is not None:
                request = inflating(request, coding, request.app.state.settings.max_body_bytes)
            return await handler(request)

        return handle

    @cached_property
    def query_names(self) -> list[str]:
        """The query parameters that the route declares, its dependencies' included."""
        return _query_names(self.dependant)

    @cached_property
    def _takes_body(self) -> bool:
        return self.body_field is not None or "requestBody" in (self.openapi_extra or {})

    async def _check(self, request: Request) -> None:
        query = request.query_params
        for name in query:
            if name not in self.query_names:
                raise BadParameter(unknown("parameter", name, self.query_names))
            first, *others = query.getlist(name)
            if any(other != first for other in others):
                raise BadParameter(f"{name}: given {len(others) + 1} times with different values")
        if request.method in _WITH_BODY and not self._takes_body and (await request.body()).strip() not in _NO_BODY:
            raise BadParameter("this route takes no body")


def query_names(request: Request) -> list[str]:
    """The query parameters of the route that a request has reached."""
    return cast(StrictRoute, request.scope["route"]).query_names


def _query_names(dependant: Dependant) -> list[str]:
    own = [field.alias for field in dependant.query_params]
    return list(dict.fromkeys(own + [name for each in dependant.dependencies for name in _query_names(each)]))

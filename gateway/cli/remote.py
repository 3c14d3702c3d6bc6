"""A running gateway as the command line's source of answers: images are sent to `/v1/predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import httpx

from gateway.answers.certificate_request import Asked
from gateway.answers.respond import Explain
from gateway.cli.sources import Answer, Body, Setup, SourceFailed
from gateway.client import Gateway, GatewayAnswer, GatewayUnreachable, Patience
from gateway.errors import PalisadeError

# Statuses that concern the image; any other refusal would meet the next image as well.
_OF_THE_IMAGE = frozenset({400, 413, 415, 422, 500})
_PATIENCE = Patience(seconds=300.0)
_ANSWER_SECONDS = 60.0


class Remote:
    """The model `model`, or the default one, of a gateway; used from any thread.

    Raises `GatewayAnswer` for an image that the gateway refuses, `SourceFailed` if it refuses all or does not answer.
    """

    def __init__(self, gateway: Gateway, *, model: str | None = None, asked: Asked = Asked()) -> None:
        asked.check()
        self._gateway = gateway
        self._query = {} if model is None else {"model": model}
        certificate = {name: value for name, value in asdict(asked).items() if value not in (None, "none")}
        self._certificate = certificate
        self.setup = self._setup(model)

    def answer(self, data: bytes, *, explain: Explain, picture: bool) -> Answer:
        """See `gateway.cli.sources.Source`."""
        body = self._predict(data, {"explain": explain})
        return Answer(body, self._post("/v1/explain", data, {}, "image/png").content if picture else None)

    def prepare(self, data: bytes) -> Body:
        """The gateway's answer itself: requests run concurrently, and the gateway batches them."""
        return self._predict(data, {})

    def judge(self, prepared: Sequence[Body]) -> list[Body | PalisadeError]:
        return list(prepared)

    def _setup(self, model: str | None) -> Setup:
        models = self._gateway.call("GET", "v1", "models")["models"]
        for entry in models:
            if entry["name"] == model or (model is None and entry.get("default")):
                certified = " ".join(map(str, self._certificate.values())) or None
                version, alpha, policy = (entry.get(name) for name in ("version", "alpha", "policy"))
                return Setup(
                    entry["name"], version, alpha, policy, certified, entry.get("votes"), entry.get("pool") or None
                )
        have = ", ".join(entry["name"] for entry in models)
        raise SourceFailed(f"model {model!r} is not served at {self._gateway.url} (has {have})")

    def _predict(self, data: bytes, query: dict[str, Any]) -> Body:
        response = self._post("/v1/predict", data, {"top_k": 1, **query, **self._certificate}, "application/json")
        try:
            body: Body = response.json()
            body["prediction"]["label"]
        except (ValueError, KeyError, TypeError):
            raise SourceFailed(
                f"{self._gateway.url} does not answer as a gateway does: the answer is no prediction"
            ) from None
        return body

    def _post(self, path: str, data: bytes, query: dict[str, Any], accept: str) -> httpx.Response:
        """The answer, once the gateway has room."""
        headers = {"Accept": accept, "Content-Type": "application/octet-stream"}
        try:
            return self._gateway.send_patiently(
                "POST",
                path,
                patience=_PATIENCE,
                params=query | self._query,
                content=data,
                headers=headers,
                timeout=_ANSWER_SECONDS,
            )
        except GatewayAnswer as error:
            if error.status in _OF_THE_IMAGE or error.code in ("blocked_by_policy", "not_certified"):
                raise
            raise SourceFailed(f"{self._gateway.url}: {error.detail}") from None
        except GatewayUnreachable as error:
            raise SourceFailed(error.detail) from None

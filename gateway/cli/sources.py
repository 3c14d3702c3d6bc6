"""What answers images on the command line: a model in this process, or (`gateway.cli.remote`) a running gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from gateway.answers.certificate_request import Asked, CertificatePolicy, uncertified, wanted
from gateway.answers.respond import Explain, predict_response
from gateway.core.certificate import CertificateWanted
from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline
from gateway.errors import PalisadeError

Body = dict[str, Any]
"""The answer to one image, as `/v1/predict` gives it."""


class Setup(NamedTuple):
    """What gives the answers; None stands for what a gateway does not disclose.

    `certified`: the certificate that is tried for each, as text; None for none. `votes`: the side of the patches that
    masks vote on; None where they do not. `pool`: whether one answers; None where none does.
    """

    model: str
    version: str | None
    alpha: float | None
    action: str | None
    certified: str | None = None
    votes: int | None = None
    pool: bool | None = None


class SourceFailed(PalisadeError):
    """The source cannot answer any image, whichever is sent."""

    status, code, title = 502, "source_failed", "No answers"


@dataclass(frozen=True)
class Answer:
    body: Body
    picture: bytes | None


class Source(Protocol):
    """`answer` takes one image; `prepare` (in threads) and `judge` (a batch of what they gave) take many.

    Each answer has the certificate that the source was made for.
    """

    @property
    def setup(self) -> Setup: ...

    def answer(self, data: bytes, *, explain: Explain, picture: bool) -> Answer:
        """The answer to a file's bytes, with the picture of `/v1/explain` on request; raises `PalisadeError`."""

    def prepare(self, data: bytes) -> Any:
        """The concurrent part of the work, for one image; raises the error of an image that cannot be read."""

    def judge(self, prepared: Sequence[Any]) -> list[Body | PalisadeError]:
        """An answer or an error for each of a batch."""


class Local:
    """A bundle's pipeline in this process."""

    def __init__(
        self, pipeline: Pipeline, policy: CertificatePolicy = CertificatePolicy(), asked: Asked = Asked()
    ) -> None:
        """Raises `BadParameter` for a certificate that the pipeline cannot make."""
        self._pipeline = pipeline
        self._policy = policy
        self._asked = asked
        self._certify = wanted(asked, pipeline, policy, "full")

    @property
    def setup(self) -> Setup:
        bundle, certify = self._pipeline.bundle, self._certify
        certified = None if certify is None else f"{certify.level}, patch {certify.masks.patch}"
        if certify is not None and self._pipeline.small_field is not None:
            certified = f"{certified}, small fields {'alone' if certify.by == 'small_field' else 'first'}"
        votes = None if self._pipeline.votes is None else self._pipeline.votes.masks.patch
        judge, pool = self._pipeline.judge, None if self._pipeline.pool is None else True
        return Setup(bundle.name, bundle.version, judge.alpha, self._pipeline.action, certified, votes, pool)

    def answer(self, data: bytes, *, explain: Explain, picture: bool) -> Answer:
        from gateway.answers.panel import panel_png

        certify = wanted(self._asked, self._pipeline, self._policy, "full", votes=explain == "all")
        decision = self._certified(self._pipeline.decide(data), certify)
        return Answer(self._body(decision, explain), panel_png(decision) if picture else None)

    def prepare(self, data: bytes) -> np.ndarray:
        return self._pipeline.decode(data)

    def judge(self, prepared: Sequence[np.ndarray]) -> list[Body | PalisadeError]:
        try:
            decisions = self._pipeline.decide_images(prepared, explain=False)
        except PalisadeError as error:
            # One of them failed the batch: each is answered alone.
            return [error] if len(prepared) == 1 else [self.judge([image])[0] for image in prepared]
        return [self._judged(decision) for decision in decisions]

    def _judged(self, decision: Decision) -> Body | PalisadeError:
        try:
            return self._body(self._certified(decision, self._certify))
        except PalisadeError as error:
            return error

    def _certified(self, decision: Decision, certify: CertificateWanted | None) -> Decision:
        """The decision with its certificate; raises `NotCertified` below the level that is required."""
        if certify is not None and not decision.blocked:
            decision = self._pipeline.certified(decision, certify)
        if decision.uncertified:
            raise uncertified(decision, "full")
        return decision

    def _body(self, decision: Decision, explain: Explain = "none") -> Body:
        body = predict_response(decision, self._pipeline, request_id="", explain=explain, top_k=1)
        return body.model_dump(mode="json")


def open_local(models: list[str] | None, model: str | None, asked: Asked = Asked()) -> Local:
    """The active version of `model`, or of the default one, in `models` or else in the settings' folders."""
    from gateway.pulling.cache import fetch_sources
    from gateway.settings import load_settings
    from gateway.versions.registry import load_registry, opened

    settings = load_settings(**({"models": models} if models else {}))
    fetch_sources(settings)
    policy = CertificatePolicy(settings.require, settings.certify_share)
    return Local(load_registry(settings, load=opened).get(model), policy, asked)

"""Which requests leave an event, and what the event holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gateway.answers.render import image_png, map_png
from gateway.answers.schemas import ClassScore
from gateway.core.decision import Action, Decision, Neutralized, Prediction, Region, Stage
from gateway.core.kinds import Kind as Anomaly
from gateway.core.outputs import FullOutputs, VerdictOutputs

Kind = Literal["flagged", "suspect", "changed", "blocked", "sample"]
Review = Literal["confirmed", "false_positive"]
PictureKind = Literal["input", "saliency", "roi", "roa", "neutral"]
Privacy = Literal["none", "hash", "image"]


class EventNeutralization(BaseModel):
    """What was inpainted; `served` when the answer was that of the inpainted image."""

    model_config = ConfigDict(frozen=True)

    region: Region
    area: float
    changed: bool
    served: bool
    p_value: float


class Event(BaseModel):
    """One request as the gateway saw it; `before` and `after` are the predictions before and after neutralisation."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The request's id; images of one request beyond the first add `.001` and so on.")
    time: datetime
    kind: Kind
    model: str
    version: str
    stage: Stage
    action: Action
    flagged: bool
    blocked: bool
    p_value: float | None = Field(
        description="Null when the cascade's screen let the image through and no masks voted."
    )
    alpha: float
    p_cutoff: float
    before: ClassScore
    after: ClassScore | None
    evidence: dict[str, float] = Field(description="p-value by fused score, the strongest first.")
    layers: dict[str, float | None] = Field(description="Deviation by monitored layer.")
    neutralization: EventNeutralization | None
    caller: str | None = Field(description="Id of the caller's key.")
    image_sha256: str | None = Field(description="SHA-256 of the bytes that were sent; null under privacy `none`.")
    sampled: bool = Field(
        description="Whether it was drawn into the uniform sample of all traffic, whatever was found."
    )
    sample_probability: float = Field(description="Probability of that draw.")
    anomaly: Anomaly | None = Field(None, description="The verdict's `kind`; null where the bundle tells none apart.")
    p_unfamiliar: float | None = None
    p_attacked: float | None = None
    pooled: ClassScore | None = Field(None, description="The pool's prediction, where it is the answer.")


@dataclass(frozen=True)
class Record:
    """An event with its pictures (PNG), as it is spooled."""

    event: Event
    pictures: dict[str, bytes]


def label_changed(done: Neutralized | None, raw: Prediction) -> bool:
    """Whether the label changes once the region is inpainted."""
    return done is not None and done.result.prediction.index != raw.index


def kind_of(decision: Decision, *, sampled: bool, suspects: bool = False) -> Kind | None:
    """The first that holds of blocked, flagged, suspect, changed, sample; None when the request leaves no event.

    `suspects`: whether suspect requests leave one for that alone.
    """
    if decision.blocked:
        return "blocked"
    if decision.flagged:
        return "flagged"
    if suspects and decision.level == "suspect":
        return "suspect"
    if decision.pooled is not None or label_changed(decision.neutralized, decision.raw.prediction):
        return "changed"
    return "sample" if sampled else None


@dataclass(frozen=True)
class Subject:
    """What an event is made from, away from the event loop."""

    id: str
    time: datetime
    kind: Kind
    decision: Decision
    caller: str | None
    image: bytes
    sampled: bool
    sample_probability: float

    def record(self, privacy: Privacy) -> Record:
        """The event and, under privacy `image`, its pictures."""
        pictures: dict[str, bytes] = dict(pictures_of(self.decision)) if privacy == "image" else {}
        return Record(self._event(privacy), pictures)

    def _event(self, privacy: Privacy) -> Event:
        decision, done = self.decision, self.decision.neutralized
        raw = decision.raw
        whole = raw.whole
        return Event(
            id=self.id,
            time=self.time,
            kind=self.kind,
            model=decision.model,
            version=decision.version,
            stage=decision.stage,
            action=decision.action,
            flagged=decision.flagged,
            blocked=decision.blocked,
            p_value=None if decision.stage == "screen" and decision.voted is None else raw.verdict.p_value,
            alpha=raw.verdict.alpha,
            p_cutoff=raw.verdict.p_cutoff,
            before=ClassScore(**asdict(raw.prediction)),
            after=None if done is None else ClassScore(**asdict(done.result.prediction)),
            evidence=dict(decision.evidence),
            layers={}
            if whole is None
            else dict(zip(raw.verdict.layers, map(float, whole.layer_deviation), strict=True)),
            neutralization=None
            if done is None
            else EventNeutralization(
                region=done.region,
                area=done.area,
                changed=label_changed(done, raw.prediction),
                served=decision.serve_neutralized,
                p_value=done.result.verdict.p_value,
            ),
            caller=self.caller,
            image_sha256=None if privacy == "none" else hashlib.sha256(self.image).hexdigest(),
            sampled=self.sampled,
            sample_probability=self.sample_probability,
            anomaly=raw.verdict.kind,
            p_unfamiliar=raw.verdict.p_unfamiliar,
            p_attacked=raw.verdict.p_attacked,
            pooled=None if decision.pooled is None else ClassScore(**asdict(decision.served.prediction)),
        )


def pictures_of(decision: Decision) -> Iterator[tuple[PictureKind, bytes]]:
    """PNGs at the network's size: the input re-encoded, the maps that were computed on it, the inpainted mask."""
    yield "input", image_png(decision.pixels)
    outputs = decision.raw.outputs
    if isinstance(outputs, FullOutputs):
        yield "saliency", map_png(outputs.saliency)
    if isinstance(outputs, VerdictOutputs):
        yield "roi", map_png(outputs.roi)
        yield "roa", map_png(outputs.roa)
    if decision.neutralized is not None:
        yield "neutral", map_png(decision.neutralized.mask.astype(np.float32))

"""What a caller sees of a decision, by disclosure, and when: at `label` not even the time tells more than the label."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from gateway import schemas
from gateway.errors import BlockedByPolicy, Forbidden
from gateway.keys import Disclosure
from gateway.pipeline import Decision
from gateway.respond import Explain

_RANK: dict[Disclosure, int] = {"label": 0, "verdict": 1, "full": 2}
_P_VALUE_DIGITS = 2

# The slowest path (screen, verdict, verdict of the neutralised image) in terms of each path, by forwards, rounded up.
_SLOWEST = {"screen": 8.0, "verdict": 2.0, "neutralized": 1.0}
_MARGIN = 1.25
_QUANTILE = 0.99
_RECENT = 256


def shows(disclosure: Disclosure, least: Disclosure) -> bool:
    """Whether `disclosure` shows what `least` shows."""
    return _RANK[disclosure] >= _RANK[least]


def check_explain(disclosure: Disclosure, explain: Explain, *, picture: bool = False) -> None:
    """Raise `Forbidden` for an explanation that this disclosure has not."""
    if explain != "none" and not shows(disclosure, "verdict"):
        raise Forbidden("explanations are not for callers at disclosure label")
    if picture and not shows(disclosure, "full"):
        raise Forbidden(f"the picture shows evidence, which callers at disclosure {disclosure} do not see: take JSON")


def disclose(response: schemas.PredictResponse, disclosure: Disclosure) -> schemas.Disclosed:
    """The part of a response that a caller at `disclosure` sees."""
    if disclosure == "full":
        return response
    prediction = response.prediction
    if disclosure == "label":
        return schemas.LabelResponse(
            id=response.id,
            model=schemas.ModelName(name=response.model.name),
            prediction=schemas.Label(label=prediction.label, index=prediction.index),
        )
    verdict, neutralization, explanation = response.verdict, response.neutralization, response.explanation
    return schemas.VerdictResponse(
        id=response.id,
        model=response.model,
        prediction=prediction,
        top=response.top,
        verdict=schemas.PlainVerdict(
            flagged=verdict.flagged, p_value=coarse_p_value(verdict.p_value), action=verdict.action
        ),
        neutralization=schemas.PlainNeutralization(
            applied=neutralization.applied, served=neutralization.served, changed=neutralization.changed
        ),
        explanation=None if explanation is None else explanation.model_copy(update={"companion": None}),
    )


def disclose_model(model: schemas.ModelSummary, disclosure: Disclosure) -> schemas.ModelSummary | schemas.ModelLabel:
    """The part of a model's description that a caller at `disclosure` sees: manifest and card at `full` only."""
    if disclosure == "full":
        return model
    kept = schemas.ModelSummary if disclosure == "verdict" else schemas.ModelLabel
    return kept.model_validate(model.model_dump(include=set(kept.model_fields)))


def refusal(decision: Decision, disclosure: Disclosure) -> BlockedByPolicy:
    """The error of a blocked input."""
    verdict = decision.raw.verdict
    if disclosure == "full":
        return BlockedByPolicy(f"flagged: p-value {verdict.p_value:.4g} at alpha {verdict.alpha:g}")
    if disclosure == "verdict":
        return BlockedByPolicy(f"flagged: p-value {coarse_p_value(verdict.p_value):g}")
    return BlockedByPolicy("not answered")


def coarse_p_value(p_value: float) -> float:
    """Two significant digits: enough to judge by, and less of a slope to climb."""
    return float(f"{p_value:.{_P_VALUE_DIGITS}g}")


class LatencyQuantum:
    """Releases answers at whole multiples of a quantum that the slowest path's time fits into.

    The quantum is `floor`, doubled until a high quantile of each path's recent times, and the work that the slowest
    path has more, fit with a margin; it is the process's, moved by all traffic and not by one request. What takes
    longer than one quantum goes out at the next multiple.
    """

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._recent = {path: deque[float](maxlen=_RECENT) for path in _SLOWEST}
        self._bounds = dict.fromkeys(_SLOWEST, 0.0)
        self.seconds = floor

    def observe(self, decision: Decision, elapsed: float) -> None:
        """Take note of a decision (without an explanation) that took `elapsed` seconds."""
        self.note("neutralized" if decision.neutralized is not None else decision.stage, elapsed)

    def note(self, path: str, elapsed: float) -> None:
        """Take note of the time of one path: `screen`, `verdict` or `neutralized`."""
        times = self._recent[path]
        times.append(elapsed)
        ordered = sorted(times)
        high, median = ordered[math.ceil(_QUANTILE * len(times)) - 1], ordered[len(times) // 2]
        # What the slowest path has more of is work, not waiting for others.
        self._bounds[path] = _MARGIN * (high + (_SLOWEST[path] - 1.0) * median)
        doublings = math.ceil(math.log2(max(1.0, max(self._bounds.values()) / self._floor)))
        self.seconds = self._floor * 2.0**doublings

    def wait(self, elapsed: float, images: int = 1) -> float:
        """Seconds from now until the answer to a request of `images` that took `elapsed` so far is released.

        A batch waits for multiples of as many quanta: else many copies of an image would add up what one hides.
        """
        step = images * self.seconds
        return math.ceil(elapsed / step) * step - elapsed

    async def release(self, start: float, disclosure: Disclosure, images: int = 1) -> None:
        """At `label`, wait until an answer that was begun at `start` (`time.perf_counter`) and is ready may go out."""
        if disclosure == "label":
            await asyncio.sleep(self.wait(time.perf_counter() - start, images))

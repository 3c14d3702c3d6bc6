"""What a caller sees of a decision, and when: at `label` not even the time discloses more than the label."""

from __future__ import annotations

from gateway.access.keys import Disclosure
from gateway.answers import schemas
from gateway.answers.respond import Explain
from gateway.core.decision import Decision
from gateway.errors import BlockedByPolicy, Forbidden

_RANK: dict[Disclosure, int] = {"label": 0, "verdict": 1, "full": 2}

_P_VALUE_DIGITS = 2


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
            flagged=verdict.flagged,
            level=verdict.level,
            p_value=coarse_p_value(verdict.p_value),
            action=verdict.action,
            kind=verdict.kind,
        ),
        neutralization=schemas.PlainNeutralization(
            applied=neutralization.applied, served=neutralization.served, changed=neutralization.changed
        ),
        pooled=response.pool is not None,
        explanation=None if explanation is None else explanation.model_copy(update={"companion": None}),
        certificate=response.certificate,
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
        alpha = verdict.alpha if verdict.flagged else verdict.suspect_alpha
        return BlockedByPolicy(f"{verdict.level}: p-value {verdict.p_value:.4g} at alpha {alpha:g}")
    if disclosure == "verdict":
        return BlockedByPolicy(f"{verdict.level}: p-value {coarse_p_value(verdict.p_value):g}")
    return BlockedByPolicy("not answered")


def coarse_p_value(p_value: float) -> float:
    """Two significant digits: enough to judge by, and less of a slope to climb."""
    return float(f"{p_value:.{_P_VALUE_DIGITS}g}")

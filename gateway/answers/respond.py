"""From a `Decision` to the response models: the same for every transport that speaks JSON."""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np

from gateway.answers import schemas
from gateway.answers.certificate import certificate_body
from gateway.answers.render import image_png, map_png
from gateway.core.decision import Decision, Neutralized, Prediction
from gateway.core.masks import MaskSet
from gateway.core.outputs import FullOutputs
from gateway.core.pipeline import Pipeline

Explain = Literal["none", "saliency", "all"]


def predict_response(
    decision: Decision, pipeline: Pipeline, *, request_id: str, explain: Explain, top_k: int
) -> schemas.PredictResponse:
    """The body of `/v1/predict` and `/v1/explain`."""
    timing = decision.timing
    return schemas.PredictResponse(
        id=request_id,
        model=schemas.ModelRef(name=decision.model, version=decision.version),
        prediction=_score(decision.served.prediction),
        top=[_score(prediction) for prediction in decision.top(top_k)],
        verdict=_verdict(decision, pipeline),
        neutralization=_neutralization(decision),
        pool=_pool(decision, pipeline),
        explanation=None if explain == "none" else _explanation(decision, full=explain == "all"),
        certificate=certificate_body(decision, pipeline, votes=explain == "all"),
        timing_ms=schemas.TimingMs(
            decode=round(timing.decode * 1e3, 3),
            queue=round(timing.queue * 1e3, 3),
            engine=round(timing.engine * 1e3, 3),
            total=round(timing.total * 1e3, 3),
        ),
    )


def model_summary(pipeline: Pipeline, *, default: bool) -> schemas.ModelSummary:
    """One line of `/v1/models`."""
    manifest = pipeline.bundle.manifest
    return schemas.ModelSummary(
        name=manifest.name,
        version=manifest.version,
        default=default,
        description=manifest.description,
        created=manifest.created,
        classes=len(manifest.classes),
        provider=pipeline.engine.provider,
        precision=pipeline.engine.precision,
        policy=pipeline.action,
        alpha=pipeline.judge.alpha,
        votes=None if pipeline.votes is None else pipeline.votes.masks.patch,
        pool=pipeline.pool is not None,
        small_field=pipeline.small_field is not None,
    )


def model_detail(pipeline: Pipeline, *, default: bool) -> schemas.ModelDetail:
    """The body of `/v1/models/{name}`: summary, manifest and robustness card."""
    manifest = pipeline.bundle.manifest
    return schemas.ModelDetail(
        **model_summary(pipeline, default=default).model_dump(),
        manifest=manifest.model_dump(mode="json"),
        card=pipeline.bundle.card(),
        smallest_p=pipeline.smallest_p,
        layer_band={layer.name: float(band) for layer, band in zip(manifest.layers, pipeline.layer_band, strict=True)},
    )


def _score(prediction: Prediction) -> schemas.ClassScore:
    return schemas.ClassScore(
        label=prediction.label, index=prediction.index, probability=round(prediction.probability, 6)
    )


def _verdict(decision: Decision, pipeline: Pipeline) -> schemas.VerdictBody:
    verdict = decision.raw.verdict
    # An image that the screen let through has no views, and so no deviation of layers.
    strongest = min(verdict.layers, key=verdict.layers.__getitem__, default=None)
    whole, about_layers = decision.raw.whole, pipeline.bundle.manifest.layer_scores
    return schemas.VerdictBody(
        stage=decision.stage,
        flagged=verdict.flagged,
        p_value=verdict.p_value,
        alpha=verdict.alpha,
        p_cutoff=verdict.p_cutoff,
        level=verdict.level,
        suspect_alpha=verdict.suspect_alpha,
        suspect_cutoff=verdict.suspect_cutoff,
        action=decision.action,
        kind=verdict.kind,
        p_unfamiliar=verdict.p_unfamiliar,
        p_attacked=verdict.p_attacked,
        votes=_votes(decision),
        evidence=[
            schemas.Evidence(name=name, p_value=p, layer=strongest if name in about_layers else None)
            for name, p in decision.evidence
        ],
        layers=[]
        if whole is None
        else [
            schemas.Layer(name=name, deviation=float(deviation), p_value=p, benign_95=float(benign))
            for (name, p), deviation, benign in zip(
                verdict.layers.items(), whole.layer_deviation, pipeline.layer_band, strict=True
            )
        ],
    )


def _votes(decision: Decision) -> schemas.VotesBody | None:
    voted = decision.voted
    if voted is None:
        return None
    return schemas.VotesBody(
        by="masks" if isinstance(voted.masks, MaskSet) else "small_field",
        p_value=voted.p_value,
        objection=round(voted.objection, 6),
        index=voted.index,
        label=decision.labels[voted.index],
        box=voted.box,
        patch=voted.masks.patch,
        whole=voted.mask is None,
    )


def _neutralization(decision: Decision) -> schemas.Neutralization:
    done = decision.neutralized
    if done is None:
        return schemas.Neutralization(applied=False, served=False)
    return schemas.Neutralization(
        applied=True,
        served=decision.serve_neutralized,
        region=done.region,
        area=round(done.area, 6),
        before=_score(decision.raw.prediction),
        after=_score(done.result.prediction),
        changed=done.result.prediction.index != decision.raw.prediction.index,
        p_value=done.result.verdict.p_value,
    )


def _pool(decision: Decision, pipeline: Pipeline) -> schemas.PoolBody | None:
    if decision.pooled is None or pipeline.pool is None:
        return None
    return schemas.PoolBody(
        before=_score(decision.raw.prediction),
        lead=round(decision.pooled.lead, 6),
        small_field=pipeline.pool.small_field is not None,
    )


def _explanation(decision: Decision, *, full: bool) -> schemas.Explanation:
    shown, outputs = decision.shown, decision.explained
    prediction = shown.prediction
    explanation = schemas.Explanation(
        label=prediction.label,
        index=prediction.index,
        pixels="neutralized" if decision.serve_neutralized else "input",
        saliency=_picture(outputs.served.saliency),
    )
    if not full:
        return explanation
    companion = shown.companion
    return explanation.model_copy(
        update={
            "input_pixels": _encoded(image_png(decision.pixels), *decision.pixels.shape[1:]),
            # The regions are those that the decision rested on: of the input as it came.
            "roi": _picture(outputs.raw.roi),
            "roa": _picture(outputs.raw.roa),
            **_neutral_pictures(decision.neutralized, outputs.neutral),
            "companion": None
            if companion is None
            else schemas.CompanionOpinion(**_score(companion).model_dump(), agrees=companion.index == prediction.index),
        }
    )


def _neutral_pictures(done: Neutralized | None, outputs: FullOutputs | None) -> dict[str, schemas.Picture]:
    if done is None or outputs is None:
        return {}
    return {
        "neutral_mask": _picture(done.mask.astype(np.float32)),
        "neutral_pixels": _encoded(image_png(outputs.neutral_pixels), *outputs.neutral_pixels.shape[1:]),
    }


def _picture(values: np.ndarray) -> schemas.Picture:
    return _encoded(map_png(values), *values.shape)


def _encoded(png: bytes, height: int, width: int) -> schemas.Picture:
    return schemas.Picture(height=height, width=width, data=base64.b64encode(png).decode("ascii"))

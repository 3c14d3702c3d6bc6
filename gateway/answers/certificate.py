"""Certificates as answers state them (what they are: `gateway.core.certificate`)."""

from __future__ import annotations

import hashlib

import numpy as np

from gateway.answers import schemas
from gateway.core.certificate import Certificate
from gateway.core.decision import Decision
from gateway.core.pipeline import Pipeline


def certificate_body(decision: Decision, pipeline: Pipeline, *, votes: bool) -> schemas.CertificateBody | None:
    """The certificate of a decision as answers state it, with the votes of the first round on request."""
    found = decision.certificate
    if found is None:
        return None
    classes, calibration = pipeline.bundle.manifest.classes, pipeline.judge.calibration
    return schemas.CertificateBody(
        level=found.level,
        label=classes[found.index],
        index=found.index,
        patch=schemas.CertifiedPatch(side=found.masks.patch, share=round(found.masks.share, 6)),
        masks=len(found.masks),
        tried=found.tried,
        forwards=found.forwards,
        record=schemas.CertificateRecord(
            masks_per_axis=found.masks.k,
            lead=found.lead,
            provider=pipeline.engine.provider,
            precision=pipeline.engine.precision,
            graphs_sha256=calibration.graphs_sha256,
            pixels_sha256=pixels_sha256(decision.pixels),
        ),
        votes=_votes(found, classes) if votes else None,
    )


def _votes(found: Certificate, classes: list[str]) -> list[schemas.MaskVote]:
    return [
        schemas.MaskVote(
            top=top,
            left=left,
            height=height,
            width=width,
            label=None if vote is None else classes[vote.index],
            index=None if vote is None else vote.index,
        )
        for (top, left, height, width), vote in zip(found.masks.boxes, found.votes, strict=True)
    ]


def pixels_sha256(pixels: np.ndarray) -> str:
    """SHA-256 of an image as the network sees it: float32 (C, H, W) in [0, 1], little-endian."""
    return hashlib.sha256(np.ascontiguousarray(pixels, "<f4").tobytes()).hexdigest()

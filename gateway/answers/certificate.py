"""Certificates as answers state them (what they are: `gateway.core.certificate`)."""

from __future__ import annotations

import hashlib

import numpy as np

from gateway.answers import schemas
from gateway.core.certificate import By, Certificate
from gateway.core.decision import Decision
from gateway.core.manifest import Manifest, Precision, graphs_sha256
from gateway.core.pipeline import Pipeline
from gateway.core.small_field import SMALL_FIELD


def certificate_body(decision: Decision, pipeline: Pipeline, *, votes: bool) -> schemas.CertificateBody | None:
    """The certificate of a decision as answers state it, with the votes of the first round on request."""
    found = decision.certificate
    if found is None:
        return None
    classes = pipeline.bundle.manifest.classes
    return schemas.CertificateBody(
        level=found.level,
        by=found.by,
        label=classes[found.index],
        index=found.index,
        patch=schemas.CertifiedPatch(side=found.masks.patch, share=round(found.masks.share, 6)),
        masks=masks_of(found, pipeline),
        tried=found.tried,
        forwards=found.forwards,
        record=schemas.CertificateRecord(
            masks_per_axis=found.masks.k,
            lead=found.lead,
            provider=pipeline.engine.provider,
            precision=pipeline.engine.precision,
            graphs_sha256=graphs_of(pipeline.bundle.manifest, found.by, pipeline.engine.precision),
            pixels_sha256=pixels_sha256(decision.pixels),
        ),
        votes=_votes(found, classes) if votes and found.by == "masks" else None,
    )


def masks_of(found: Certificate, pipeline: Pipeline) -> int:
    """Masks of the first round, or windows of cells."""
    return (
        len(found.masks)
        if pipeline.small_field is None or found.by == "masks"
        else pipeline.small_field.windows(found.masks.patch)
    )


def graphs_of(manifest: Manifest, by: By, precision: Precision) -> str:
    """SHA-256 of what shows a certificate: the graphs of the answering network, or that of the small fields."""
    return graphs_sha256(manifest.files, precision) if by == "masks" else manifest.files.get(SMALL_FIELD, "")


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

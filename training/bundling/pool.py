"""A pool of networks that answer together, fitted for a bundle: `gateway.core.pool`.

Weights are fixed, as chosen on select (docs/studies.md); the threshold is the lowest at which the pool takes no more
than a small share of right answers from benign images of the calibrate split. No attack is needed for that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from gateway.core.decode import to_pixels
from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import Manifest
from gateway.core.outputs import VerdictOutputs
from gateway.core.pipeline import Pipeline, Seen
from gateway.core.pool import field_logits, leads, pooled
from gateway.core.rules import PoolRule
from gateway.errors import PalisadeError
from training.bundling.provenance import made_with
from training.bundling.rules import add_rule, revised
from training.data.dataset import Split
from training.errors import TrainingError
from training.served.answers import open_pipeline
from training.util.atomic import draft_of
from training.util.signatures import StepProgress, silent

WEIGHTS = (0.25, 1.0, 0.5)
"""Of the probabilities of answering network, companion and network of small fields: what is attacked counts least."""
HARMED = 0.005
"""Share of benign images whose right answer the pool may take away."""


def with_pool(
    path: Path, out: Path, *, harmed: float = HARMED, version: str | None = None, progress: StepProgress = silent
) -> Bundle:
    """Write to `out` the bundle in `path`, with a pool fitted beside its CPU calibration in fp32.

    Unless the pool is switched on nothing changes, so that the version may stay. Raises `TrainingError` where `out`
    exists, the bundle has no companion, or the data are not those that it was made with.
    """
    bundle = load_bundle(path)
    if out.exists():
        raise TrainingError(f"{out} exists; choose another --out")
    manifest, (data, _) = revised(bundle, version), made_with(bundle)
    with draft_of(out) as draft:
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        add_pool(draft, manifest, data.calibrate, harmed=harmed, progress=progress)
    return load_bundle(out)


def add_pool(
    folder: Path, manifest: Manifest, benign: Split, *, harmed: float = HARMED, progress: StepProgress = silent
) -> None:
    """Give the bundle in `folder` a pool, from labelled `benign` images, and this `manifest`."""
    if not manifest.companion:
        raise TrainingError(f"{manifest.name} has no companion: one network is no pool")
    bundle = load_bundle(folder)
    answering, companion, field = opinions(open_pipeline(bundle), benign.x, progress=progress)
    rule = fitted(answering, companion, field, benign.y, benign.group, harmed=harmed)
    add_rule(folder, manifest, bundle.calibration("cpu", "fp32").key, {}, pool=rule)


def fitted(
    answering: np.ndarray,
    companion: np.ndarray,
    field: np.ndarray | None,
    label: np.ndarray,
    group: np.ndarray,
    *,
    harmed: float = HARMED,
    weights: tuple[float, float, float] = WEIGHTS,
) -> PoolRule:
    """The rule with the lowest threshold, of logits (N, K) of benign images with labels (N,) in groups (N,).

    At most the share `harmed` of them loses a right answer to the pool. `weights` are as `WEIGHTS`.
    """
    rule = PoolRule(
        answering=weights[0],
        companion=weights[1],
        small_field=None if field is None else weights[2],
        threshold=0.0,
        harmed=harmed,
        n=len(label),
        groups=len(np.unique(group)),
    )
    first = answering.argmax(1)
    best, lead = leads(pooled(rule, answering, companion, field), first)
    lost = np.sort(lead[(first == label) & (best != label)])[::-1]
    allowed = int(harmed * len(label))
    if len(lost) <= allowed:
        return rule
    return rule.model_copy(update={"threshold": float(np.nextafter(lost[allowed], 1.0))})


def opinions(
    pipeline: Pipeline, images: np.ndarray, *, progress: StepProgress = silent
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Logits (N, K) of answering network, companion and, if there is one, network of small fields.

    Of uint8 images (N, H, W, C); raises `EngineError`.
    """
    answering, companion, field = [], [], []
    for start in range(0, len(images), 64):
        some = images[start : start + 64]
        outputs = [each.raw.outputs for each in pipeline.decide_images(list(some), explain=False)]
        for each in outputs:
            assert isinstance(each, VerdictOutputs)
            assert each.companion_logits is not None
            answering.append(each.logits)
            companion.append(each.companion_logits)
        if pipeline.small_field is not None:
            for row in pipeline.see([Seen(to_pixels(image)[0]) for image in some]):
                if isinstance(row, PalisadeError):
                    raise row
                field.append(field_logits(row))
        progress("a pool's opinions", start + len(some), len(images))
    return np.stack(answering), np.stack(companion), np.stack(field) if field else None

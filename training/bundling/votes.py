"""Masks that vote, calibrated for a bundle: `gateway.core.votes`.

Each image of the calibrate split is served, and then answered under every mask; the objections to its served label are
what those of an input are compared with. No attack is needed for that.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gateway.core.decode import to_pixels
from gateway.core.grouped import group_weights
from gateway.core.loading import Bundle, load_bundle
from gateway.core.manifest import Manifest
from gateway.core.masks import MaskSet, default_k, largest_patch
from gateway.core.pipeline import Masked, Pipeline, Seen
from gateway.core.rules import VoteRule
from gateway.core.small_field import WindowSet
from gateway.core.votes import all_objections
from gateway.errors import PalisadeError
from training.bundling.provenance import made_with
from training.bundling.rules import add_rule, revised
from training.data.dataset import Split
from training.errors import TrainingError
from training.served.answers import open_pipeline
from training.util.atomic import draft_of
from training.util.signatures import StepProgress, silent

By = Literal["masks", "small_field"]
Hider = MaskSet | WindowSet
PATCH_SHARE = 0.05
"""Share of the image under the patches that masks are made for, unless another side is asked for."""
WHOLE, BEYOND = 0.25, 0.7
"""How the whole image counts, and what windows have of alpha, as chosen on select (docs/studies.md)."""


def with_votes(
    path: Path,
    out: Path,
    *,
    patch: int | None = None,
    masks_per_axis: int | None = None,
    by: By | None = None,
    whole: float | None = None,
    version: str | None = None,
    progress: StepProgress = silent,
) -> Bundle:
    """Write to `out` the bundle in `path`, with votes calibrated beside its CPU calibration in fp32.

    Without votes nothing changes: scores, p-values, cutoffs and flags stay, so that the version may, too. `patch` is a
    side in pixels of the network's input, and `by` is what votes (default: the network of small fields, where the
    bundle has one, and else masks), which hears of the whole image with `whole` (`gateway.core.rules.VoteRule`; 1: no
    more than of a window). Raises `TrainingError` where `out` exists, the patch does not fit, what is to vote
    is not there, or the data are not those that the bundle was made with.
    """
    bundle = load_bundle(path)
    if out.exists():
        raise TrainingError(f"{out} exists; choose another --out")
    masks = hiding(bundle.manifest, patch=patch, masks_per_axis=masks_per_axis, by=by)
    if whole is not None and isinstance(masks, MaskSet):
        raise TrainingError("--whole is of the network of small fields, and masks vote")
    manifest, (data, _) = revised(bundle, version), made_with(bundle)
    with draft_of(out) as draft:
        shutil.copytree(bundle.path, draft, dirs_exist_ok=True)
        add_votes(draft, manifest, data.calibrate, masks=masks, whole=whole, progress=progress)
    return load_bundle(out)


def add_votes(
    folder: Path,
    manifest: Manifest,
    benign: Split,
    *,
    masks: Hider | None = None,
    whole: float | None = None,
    progress: StepProgress = silent,
) -> None:
    """Give the bundle in `folder` votes beside its CPU calibration in fp32, from `benign` images, and this `manifest`.

    The labels are those that the policy `sanitize` serves without the cascade.
    """
    bundle = load_bundle(folder)
    rule, arrays = calibrated(open_pipeline(bundle), masks or hiding(manifest), benign, whole, progress=progress)
    add_rule(folder, manifest, bundle.calibration("cpu", "fp32").key, arrays, votes=rule)


def hiding(
    manifest: Manifest, *, patch: int | None = None, masks_per_axis: int | None = None, by: By | None = None
) -> Hider:
    """What votes against patches of side `patch` (default: `PATCH_SHARE` of the image): masks, or windows of cells.

    `TrainingError` if it does not fit, or is not there.
    """
    size, fields = manifest.input, manifest.small_field
    side = patch or max(1, round((PATCH_SHARE * size.height * size.width) ** 0.5))
    if side > (largest := largest_patch(size.height, size.width)):
        raise TrainingError(f"--patch {side}: at most {largest} pixels, half the shorter side")
    if by == "masks" or (by is None and (fields is None or masks_per_axis is not None)):
        return MaskSet(size.height, size.width, side, masks_per_axis or default_k(size.height, size.width))
    if fields is None:
        raise TrainingError("--by small_field: the bundle has no network of small fields (`palisade small-field`)")
    if masks_per_axis is not None:
        raise TrainingError("--masks: the network of small fields has none")
    return WindowSet(fields, size.height, size.width, side)


def calibrated(
    pipeline: Pipeline, masks: Hider, benign: Split, whole: float | None = None, *, progress: StepProgress = silent
) -> tuple[VoteRule, dict[str, np.ndarray]]:
    """The rule for `masks` and the calibration's arrays `votes` and `vote_weights` (n,), from `benign` images."""
    windows = {"by": "small_field", "whole": whole or WHOLE, "beyond": BEYOND}
    own: dict[str, Any] = {"masks_per_axis": masks.k} if isinstance(masks, MaskSet) else windows
    found = served_objections(pipeline, benign.x, masks, own.get("whole"), progress=progress)
    order, weights = np.argsort(found, kind="stable"), group_weights(benign.group)
    rule = VoteRule(patch=masks.patch, **own, n=len(found), groups=len(np.unique(benign.group)))
    return rule, {"votes": found[order], "vote_weights": weights[order]}


def served_objections(
    pipeline: Pipeline,
    images: np.ndarray,
    masks: Hider,
    whole: float | None = None,
    *,
    progress: StepProgress = silent,
) -> np.ndarray:
    """The largest objection (N,) to the served label of each of uint8 images (N, H, W, C), under `masks`.

    With `whole` (`gateway.core.rules.VoteRule`) that of the network of small fields to the whole image is heard, too.
    """
    found = np.empty(len(images))
    for start in range(0, len(images), 64):
        some = images[start : start + 64]
        served = [each.served.prediction.index for each in pipeline.decide_images(list(some), explain=False)]
        under, seen = _heard(pipeline, some, masks)
        found[start : start + len(some)] = all_objections(np.array(served), under, seen, whole)[0].max(1)
        progress("votes of masks", start + len(some), len(images))
    return found


def logits_under(pipeline: Pipeline, images: np.ndarray, masks: Hider) -> np.ndarray:
    """Logits (N, M, K) of uint8 images (N, H, W, C) under each mask, or without each window; raises `EngineError`.

    Under masks they are the answering network's.
    """
    return _heard(pipeline, images, masks)[0]


def _heard(pipeline: Pipeline, images: np.ndarray, masks: Hider) -> tuple[np.ndarray, np.ndarray | None]:
    """Those logits, and those of the whole images (N, K) where windows vote."""
    if isinstance(masks, WindowSet):
        evidence = np.stack(_replies(pipeline, [Seen(to_pixels(image)[0]) for image in images]))
        return masks.logits(evidence), masks.whole(evidence)
    singles = masks.singles()
    under = [Masked(to_pixels(image)[0], mask) for image in images for mask in singles]
    return np.stack(_replies(pipeline, under)).reshape(len(images), len(singles), -1), None


def _replies(pipeline: Pipeline, asked: Sequence[Masked] | Sequence[Seen]) -> list[np.ndarray]:
    most, rows = pipeline.engine.buckets[-1], []
    for i in range(0, len(asked), most):
        for row in pipeline.reply(asked[i : i + most]):
            if isinstance(row, PalisadeError):
                raise row
            assert isinstance(row, np.ndarray)
            rows.append(row)
    return rows

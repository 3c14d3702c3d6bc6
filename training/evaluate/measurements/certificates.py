"""Level 0: how many answers to benign test images are agreed and proved against a square patch, and what that bounds.

Certificates are the gateway's own (`gateway.core.certificate`), on the label that is served. What they say of attacked
images needs no attack: an image under a patch that is answered wrongly and `agreed` is an image some one-mask label of
which was wrong before, and one that is answered wrongly and `proved` is an image that double masking answers wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from pydantic import Field

from gateway.core.certificate import RANK, CertificateWanted, Wanted
from gateway.core.masks import MaskSet, default_k, default_patch
from gateway.core.pipeline import Masked, Pipeline
from gateway.errors import PalisadeError
from training.data.dataset import Split
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.shown import Body, Table, percent, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.util.statistics import interval

CHUNK = 64
SMALLER = 0.6
"""Side of the second patch as a share of the first one's."""
LISTED = 10
"""Classes on the card's page."""

LEVELS: tuple[Wanted, ...] = ("agreed", "proved")

Labels = Callable[[list[np.ndarray]], np.ndarray]
"""Masks (H, W) to the labels (n,) of one image under each of them."""


class OfClass(Section):
    """Shares of one class's images that are answered rightly, and agreed or proved."""

    n: int
    agreed: float
    proved: float


class OfPatch(Section):
    """Certificates against a square of side `patch`, which covers `share` of the image; `k` masks an axis.

    `agreed` and `proved`: answered rightly and at that level. `agreed_wrong` and `proved_wrong` count wrong answers at
    that level. `masked_errs`: images with a wrong label under any one mask, the bound on answers that a patch makes
    wrong and agreed. `double_masking_errs`: images that double masking answers wrongly, the bound on those that it
    makes wrong and proved.
    """

    patch: int
    masks: int
    share: float
    agreed: float
    agreed_interval: Interval
    proved: float
    proved_interval: Interval
    agreed_wrong: int
    proved_wrong: int
    masked_errs: float
    masked_errs_interval: Interval
    double_masking_errs: float
    double_masking_errs_interval: Interval
    by_class: dict[str, OfClass] = Field(default_factory=dict)


class Certificates(Section):
    """Certificates against the gateway's default patch and, where there is one, against a smaller one."""

    n: int
    default: OfPatch
    smaller: OfPatch | None = None

    @property
    def patches(self) -> list[OfPatch]:
        return [self.default] if self.smaller is None else [self.default, self.smaller]


def certificates(bench: Bench) -> Found:
    """Certificates of the answers to benign test images, for two sizes of patch."""
    images = bench.first(bench.settings.certified)
    height, width = images.x.shape[1:3]
    k = default_k(height, width)
    default = default_patch(height, width)
    found: list[OfPatch] = []
    outcomes: dict[str, np.ndarray] = {}
    for patch in dict.fromkeys((default, max(1, round(SMALLER * default)))):
        masks = MaskSet(height, width, patch, k)
        rows = bench.rows(
            f"certificates, patch {patch}",
            f"certificates-{patch}",
            {"k": k},
            len(images),
            CHUNK,
            partial(_certified, bench.pipeline, images, masks),
            served=True,
        )
        found.append(of_patch(rows, images, patch, masks=len(masks), classes=bench.bundle.manifest.classes))
        if patch == default:
            right = rows["label"] == images.y
            outcomes = {f"certified_{level}": (rows["level"] >= RANK[level]) & right for level in LEVELS}
    figures = {
        f"certified_{level}": Figure(f"certified_{level}", at=("certificates", "default", level)) for level in LEVELS
    }
    section = Certificates(n=len(images), default=found[0])
    if len(found) > 1:
        section = Certificates(n=len(images), default=found[0], smaller=found[1])
    return Found(section, figures, outcomes)


def double_masking(labels: Labels, masks: MaskSet, singles: np.ndarray) -> int:
    """PatchCleanser's answer (Xiang et al. 2022, Algorithm 1), of the labels (M,) under each one mask.

    That of all, where they agree; else that of a mask whose label differs from most others', if every second mask
    beside it leaves that label; else that of the most.
    """
    values, counts = np.unique(singles, return_counts=True)
    most = int(values[np.argmax(counts)])
    for i in np.flatnonzero(singles != most):
        pairs = [masks.union((int(i), j)) for j in range(len(masks)) if j != i]
        if (labels(pairs) == singles[i]).all():
            return int(singles[i])
    return most


def _certified(
    pipeline: Pipeline, images: Split, masks: MaskSet, start: int, stop: int, _generator: torch.Generator
) -> Arrays:
    wanted = CertificateWanted(masks, votes=True)
    made: dict[str, list[int]] = {"level": [], "label": [], "masked_right": [], "double": []}
    decisions = pipeline.decide_images(list(images.x[start:stop]), explain=False)
    for decision, truth in zip(decisions, images.y[start:stop].tolist(), strict=True):
        found = pipeline.certified(decision, wanted).certificate
        assert found is not None
        # All masks of the first round were run (`votes`).
        singles = np.array([vote.index for vote in found.votes if vote is not None])
        made["level"].append(RANK[found.level])
        made["label"].append(found.index)
        made["masked_right"].append(bool((singles == truth).all()))
        made["double"].append(double_masking(partial(_labels, pipeline, decision.pixels), masks, singles))
    return {name: np.array(values) for name, values in made.items()}


def _labels(pipeline: Pipeline, pixels: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    found = []
    for each in pipeline.answer([Masked(pixels, mask) for mask in masks]):
        if isinstance(each, PalisadeError):
            raise each
        found.append(int(np.argmax(each)))
    return np.array(found)


def of_patch(rows: Arrays, images: Split, patch: int, *, masks: int, classes: list[str]) -> OfPatch:
    """What `rows` (level, label, masked_right and double, (N,) each) amount to, for squares of side `patch`."""
    right = rows["label"] == images.y
    agreed, proved = rows["level"] >= RANK["agreed"], rows["level"] == RANK["proved"]
    masked, double = ~rows["masked_right"].astype(bool), rows["double"] != images.y
    by_class = {
        name: OfClass(
            n=int(of.sum()), agreed=float((agreed & right)[of].mean()), proved=float((proved & right)[of].mean())
        )
        for label, name in enumerate(classes)
        if (of := images.y == label).any()
    }
    return OfPatch(
        patch=patch,
        masks=masks,
        share=patch**2 / (images.x.shape[1] * images.x.shape[2]),
        agreed=float((agreed & right).mean()),
        agreed_interval=interval(agreed & right, images.group),
        proved=float((proved & right).mean()),
        proved_interval=interval(proved & right, images.group),
        agreed_wrong=int((agreed & ~right).sum()),
        proved_wrong=int((proved & ~right).sum()),
        masked_errs=float(masked.mean()),
        masked_errs_interval=interval(masked, images.group),
        double_masking_errs=float(double.mean()),
        double_masking_errs_interval=interval(double, images.group),
        by_class=by_class,
    )


def table_of(patches: list[OfPatch], masks: str) -> Table:
    """One row for each patch; `masks` is what hides it."""
    rows = [
        (
            f"{each.patch} x {each.patch}, {percent(each.share)} of the image",
            str(each.masks),
            ranged(each.agreed, each.agreed_interval),
            ranged(each.proved, each.proved_interval),
            f"{each.agreed_wrong}, {each.proved_wrong}",
        )
        for each in patches
    ]
    return Table(("patch", masks, "right and agreed", "right and proved", "wrong: agreed, proved"), rows)


def worst_classes(of: OfPatch) -> Table:
    """The classes of which the fewest images are proved."""
    worst = sorted(of.by_class.items(), key=lambda item: item[1].proved)[:LISTED]
    head = (f"class, fewest proved at {of.patch} x {of.patch}", "n", "right and agreed", "right and proved")
    return Table(head, [(name, f"{row.n:,}", percent(row.agreed), percent(row.proved)) for name, row in worst])


def _show(found: Certificates) -> Body:
    body: Body = [table_of(found.patches, "masks")]
    for each in found.patches:
        body.append(
            f"Whatever a patch of {each.patch} x {each.patch} pixels shows and wherever it lies: over images like "
            f"these, at most {ranged(each.double_masking_errs, each.double_masking_errs_interval)} are answered "
            "wrongly and `proved`, and at most "
            f"{ranged(each.masked_errs, each.masked_errs_interval)} wrongly and `agreed`."
        )
    if len(found.default.by_class) > 1:
        body.append(worst_classes(found.default))
    return body


UNIT = Unit(
    "certificates",
    "0",
    "certificates against patches",
    certificates,
    Certificates,
    ("certificates",),
    (
        Place(
            "certificates",
            "Certificates against patches",
            "Answers whose label is the same under every mask of a set (`agreed`), or under every two of them "
            "(`proved`): `?certify=patch`. That an answer has no certificate says nothing against it.",
            "knows",
            Certificates,
            _show,
        ),
    ),
    {
        "certified_agreed": "benign answers that are right and agreed against the default patch",
        "certified_proved": "benign answers that are right and proved against the default patch",
    },
    count="certified",
    seconds=0.4,
    verified=500,
)

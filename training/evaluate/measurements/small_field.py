"""Level 0: how many labels of benign test images the network of small fields agrees with and proves.

As `training.evaluate.measurements.certificates`, with windows of cells in place of masks.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from gateway.core.certificate import LEADS, RANK, CertificateWanted, certificate_of
from gateway.core.decode import to_pixels
from gateway.core.loading import Bundle
from gateway.core.masks import PATCH_SHARE, MaskSet, default_k, default_patch
from gateway.core.pipeline import Pipeline
from gateway.core.small_field import Windows
from gateway.core.small_field_engine import SmallFieldEngine
from training.data.dataset import Split
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Figure, Found
from training.evaluate.harness.section import Interval, Section
from training.evaluate.harness.shown import Body, percent, ranged
from training.evaluate.harness.store import Arrays
from training.evaluate.harness.unit import Place, Unit
from training.evaluate.measurements.certificates import LEVELS, SMALLER, OfPatch, of_patch, table_of, worst_classes
from training.util.statistics import interval

CHUNK = 64
LARGER = 1.4
"""Side of the largest patch as a share of the default one's."""


class SmallFieldProofs(Section):
    """Certificates by the network of small fields, which answers `accuracy` of the images rightly by itself.

    `masks` are windows of cells. `double_masking_errs`: images of which some window leaves one wrong label whatever
    second window is left out, too; no more can be answered wrongly and proved because of a patch.
    """

    n: int
    accuracy: float
    accuracy_interval: Interval
    smaller: OfPatch
    default: OfPatch
    larger: OfPatch

    @property
    def patches(self) -> list[OfPatch]:
        return [self.smaller, self.default, self.larger]


def has_small_field(bundle: Bundle) -> bool:
    """Whether the bundle has such a network."""
    return bundle.manifest.small_field is not None


def small_field(bench: Bench) -> Found:
    """Certificates of the answers to benign test images, for three sizes of patch."""
    images = bench.first(bench.settings.small_field)
    height, width = images.x.shape[1:3]
    default = default_patch(height, width, PATCH_SHARE)
    sides = [max(1, round(share * default)) for share in (SMALLER, 1.0, LARGER)]
    engine = bench.pipeline.small_field
    assert engine is not None
    depends = {"sides": sides, "graph": bench.bundle.manifest.files[engine.path.name]}
    make = partial(_proofs, bench.pipeline, engine, images, sides)
    rows = bench.rows("small fields", "small-field", depends, len(images), CHUNK, make, served=True)
    found, classes = [], bench.bundle.manifest.classes
    for k, side in enumerate(sides):
        of_side = {"level": rows["level"][:, k], "label": rows["label"], "masked_right": rows["masked_right"][:, k]}
        of_side["double"] = rows["double"][:, k]
        found.append(of_patch(of_side, images, side, masks=engine.windows(side), classes=classes))
    right, own = rows["label"] == images.y, rows["own"] == images.y
    section = SmallFieldProofs(
        n=len(images),
        accuracy=float(own.mean()),
        accuracy_interval=interval(own, images.group),
        smaller=found[0],
        default=found[1],
        larger=found[2],
    )
    names = {level: f"small_field_{level}" for level in LEVELS}
    return Found(
        section,
        {name: Figure(name, at=("small_field", "default", level)) for level, name in names.items()},
        {name: (rows["level"][:, 1] >= RANK[level]) & right for level, name in names.items()},
    )


def one_wrong_label(evidence: np.ndarray, windows: Windows, truth: int) -> int:
    """A wrong label that some window leaves whatever second window is left out, too; `truth` where there is none.

    `evidence` (K, cells) is of one image.
    """
    totals = evidence.sum(1)
    for window in windows.windows.T:
        left = evidence * (1 - window)
        first = int((totals - evidence @ window).argmax())
        if first != truth and ((left.sum(1)[:, None] - left @ windows.windows).argmax(0) == first).all():
            return first
    return truth


def _proofs(
    pipeline: Pipeline,
    engine: SmallFieldEngine,
    images: Split,
    sides: list[int],
    start: int,
    stop: int,
    _generator: torch.Generator,
) -> Arrays:
    some, truths = images.x[start:stop], images.y[start:stop].tolist()
    height, width = some.shape[1:3]
    served = [each.served.prediction.index for each in pipeline.decide_images(list(some), explain=False)]
    pixels = np.concatenate([to_pixels(image) for image in some])
    evidence = engine.evidence(pixels)
    evidence = evidence.reshape(*evidence.shape[:2], -1)
    made: dict[str, list[np.ndarray]] = {"level": [], "masked_right": [], "double": []}
    lead = LEADS["fp32"]
    for side in sides:
        wanted = CertificateWanted(MaskSet(height, width, side, default_k(height, width)), by="small_field")
        found = engine.prove(pixels, side)
        levels = [certificate_of(each, label, wanted, lead).level for each, label in zip(found, served, strict=True)]
        windows = engine.windows_for(side)
        one = evidence.sum(2)[..., None] - evidence @ windows.windows
        made["level"].append(np.array([RANK[level] for level in levels]))
        made["masked_right"].append((one.argmax(1) == np.array(truths)[:, None]).all(1))
        made["double"].append(
            np.array([one_wrong_label(each, windows, truth) for each, truth in zip(evidence, truths, strict=True)])
        )
    stacked = {name: np.stack(values, 1) for name, values in made.items()}
    return stacked | {"label": np.array(served), "own": evidence.sum(2).argmax(1)}


def _show(found: SmallFieldProofs) -> Body:
    default = found.default
    body: Body = [table_of(found.patches, "windows")]
    body.append(
        f"The network answers {ranged(found.accuracy, found.accuracy_interval)} rightly by itself, n = {found.n:,}. "
        f"Whatever a patch of {default.patch} x {default.patch} pixels ({percent(default.share)} of the image) shows "
        "and wherever it lies: over images like these, at most "
        f"{ranged(default.double_masking_errs, default.double_masking_errs_interval)} are answered wrongly and "
        "`proved` by this network."
    )
    if len(default.by_class) > 1:
        body.append(worst_classes(default))
    return body


UNIT = Unit(
    "small_field",
    "0",
    "certificates by the network of small fields",
    small_field,
    SmallFieldProofs,
    ("small_field",),
    (
        Place(
            "small_field",
            "Certificates in one forward pass",
            "Answers that the network of small fields gives, too, without every window of its cells that a patch can "
            "touch (`agreed`), or without every two (`proved`): `?certify=small_field`.",
            "knows",
            SmallFieldProofs,
            _show,
        ),
    ),
    {
        "small_field_agreed": "benign answers that are right and agreed by the network of small fields",
        "small_field_proved": "benign answers that are right and proved by the network of small fields",
    },
    count="small_field",
    seconds=0.02,
    verified=500,
    only=has_small_field,
)

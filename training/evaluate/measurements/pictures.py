"""Rows of pictures for the report: a test image clean, attacked, patched and neutralised."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gateway.core.decision import Decision, Pass
from gateway.core.outputs import FullOutputs
from training.analysis.pictures import data_uri, overlaid, plain
from training.bundling.samples import first_of_classes
from training.evaluate.harness.attacked import attacked
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import Found
from training.evaluate.harness.section import Section
from training.evaluate.harness.unit import Unit

ROWS = 5


def pictures(bench: Bench) -> Found:
    """The first images of as many classes that PGD at 8/255 fools the answering network on, and the noisy patch too."""
    strong, patch = attacked(bench, "pgd_8"), attacked(bench, "patch")
    n = min(len(strong), len(patch))
    truth = strong.clean.y[:n]
    fooled = [
        np.array([decision.raw.prediction.index for decision in _decide(bench, made.images[:n])]) != truth
        for made in (strong, patch)
    ]
    chosen = first_of_classes(truth, fooled[0] & fooled[1], ROWS)
    rows = []
    for index in chosen:
        kinds = {"clean": strong.clean.x, "attacked": strong.images, "patched": patch.images}
        found = _decide(bench, np.stack([x[index] for x in kinds.values()]), explain=True)
        decisions = dict(zip(kinds, found, strict=True))
        cells = [
            _cell(kind, decision.raw, decision.explained.raw, int(truth[index]), flagged=decision.flagged)
            for kind, decision in decisions.items()
        ]
        after, neutral = decisions["patched"].neutralized, decisions["patched"].explained.neutral
        if after is not None and neutral is not None:
            cells.append(_cell("neutralised", after.result, neutral, int(truth[index]), flagged=False))
        rows.append({"cells": cells})
    return Found(Section(), curves={"pictures": rows})


def _decide(bench: Bench, images: np.ndarray, *, explain: bool = False) -> list[Decision]:
    return bench.pipeline.decide_images(list(images), explain=explain)


def _cell(kind: str, found: Pass, outputs: FullOutputs, truth: int, *, flagged: bool) -> dict[str, Any]:
    image = torch.from_numpy(outputs.neutral_pixels)
    return {
        "kind": kind,
        "image": data_uri(plain(image)),
        "label": found.prediction.label,
        "map": data_uri(overlaid(image, torch.from_numpy(outputs.saliency))),
        "right": found.prediction.index == truth,
        "flagged": flagged,
    }


UNIT = Unit(
    "pictures",
    "explanations",
    "pictures for the report",
    pictures,
    Section,
    count="patched",
    depends=("steps",),
    seconds=0.05,
)

"""The study of second answers, on the colour classifier of the gateway's tests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gateway.core.manifest import Recovery
from gateway.core.pipeline import Pipeline
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from studies.fooling import fooling, known
from studies.recovery import RULES, recovery_report, recovery_table, seen
from tests.gateway.tiny import clean_image, patched_image, write_bundle
from training.data.dataset import Split
from training.errors import TrainingError
from training.recipes.evaluation import Evaluation
from training.util.signatures import silent


class Colours(nn.Module):
    """The classifier of `tests.gateway.tiny` in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0, 10.0, 40.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.weight


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_bundle(tmp_path_factory.mktemp("models") / "tiny"), Settings(threads=1))


@pytest.fixture(scope="module")
def split() -> Split:
    """Two plain images that a small change makes blue, and one that a patch has made blue."""
    images = np.stack([clean_image((60, 0, 12)), clean_image((0, 60, 12)), patched_image()])
    return Split(images, np.array([0, 1, 0]), np.arange(3))


def test_what_is_seen_and_what_a_rule_serves(pipeline: Pipeline, split: Split) -> None:
    found = seen(pipeline, split, "three images", silent)
    assert found.first.tolist() == [0, 1, 2]
    assert found.gated.tolist()[2]
    assert found.second[2] == 0
    assert found.served(None).tolist() == [0, 1, 2]
    rule = Recovery(contrast_mean=0, contrast_std=1, lead_mean=0, lead_std=1, preference_rms=1, threshold=-100)
    assert found.served(rule)[2] == 0
    doubted = replace(found, prefers=np.full(3, -1e6))
    assert doubted.served(rule).tolist() == [0, 1, 2]


def test_only_images_that_fool_are_kept(split: Split) -> None:
    many = split.take(np.array([0, 1] * 40))
    found = fooling(cast(Any, Colours()), many, "pgd_8", 5, Evaluation(), seed=0)
    answers = Colours()(torch.from_numpy(found.x).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    assert len(found) <= 5
    assert (answers != found.y).all()
    right = clean_image((255, 0, 0))
    with pytest.raises(TrainingError, match="pgd_8 fools the answering network on"):
        fooling(
            cast(Any, Colours()), Split(right[None], np.array([0]), np.array([0])), "pgd_8", 5, Evaluation(), seed=0
        )


def test_only_attacks_of_the_card_have_a_name() -> None:
    assert known(["bars"]) == ["bars"]
    with pytest.raises(TrainingError, match=r"unknown attacks lasers; there are .*bars"):
        known(["bars", "lasers"])


def test_every_rule_is_reported(pipeline: Pipeline, split: Split) -> None:
    data = SimpleNamespace(calibrate=split.take(np.array([0, 1, 2] * 8)), select=split.take(np.array([0, 1] * 20)))
    report = recovery_report(
        pipeline, cast(Any, Colours()), cast(Any, data), Evaluation(), names=("pgd_8",), n=4, progress=silent
    )
    assert set(report["rules"]) == set(RULES)
    for found in report["rules"].values():
        assert found["clean"]["before"] == 1
        assert 0 <= found["recovered"]["pgd_8"]["mean"] <= 1
    assert recovery_table(report).row_count == len(RULES)

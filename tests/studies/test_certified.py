"""The studies of certificates, on the colour classifier of the gateway's tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from gateway.settings import Settings
from gateway.versions.registry import load_pipeline
from studies.certified import certified_report, certified_tables
from studies.certified_attack import attack, attack_report, attack_table, patched, places
from studies.votes import RATES, SCORES, SETS, Voted, flips, judged, label_under, mask_sets, vote, votes_table
from tests.gateway.tiny import SIZE, clean_image, write_bundle
from training.data.dataset import Split

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 120), (120, 0, 0), (70, 60, 0)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_pipeline(write_bundle(tmp_path_factory.mktemp("models") / "tiny"), Settings(threads=1))


@pytest.fixture(scope="module")
def split() -> Split:
    images = np.stack([clean_image(colour) for colour in COLOURS * 2])
    return Split(images, np.array([0, 1, 2, 0, 0] * 2), np.arange(len(images)))


def network(x: Tensor) -> Tensor:
    """The classifier of `tests.gateway.tiny` in torch."""
    return x.mean((2, 3)) * torch.tensor([10.0, 10.0, 40.0])


def test_shares_and_costs_by_level(pipeline: Pipeline, split: Split) -> None:
    report = certified_report(pipeline, split, [2, 5], n=10)
    assert report["right"] == 1.0
    small, large = report["patches"]["2"], report["patches"]["5"]
    assert small["proved_and_right"]["mean"] > large["proved_and_right"]["mean"] > 0
    assert small["agreed_and_wrong"] == small["proved_and_wrong"] == 0
    assert sum(cost["n"] for cost in small["cost"].values()) == 10
    assert small["cost"]["proved"]["forwards"] == 136
    assert small["by_class"]["red"]["n"] == 6
    assert [table.row_count for table in certified_tables(report)] == [2, 2]


def test_patches_go_to_every_place() -> None:
    assert len(places(32, 5, 1)) == 28**2
    assert places(6, 3, 2)[-1] == (3, 3)
    made = patched(np.zeros((3, 6, 6), np.float32), [(0, 0), (3, 2)], np.ones((2, 3, 3, 3), np.float32))
    assert made.sum((1, 2, 3)).tolist() == [27, 27]
    assert made[1, 0, 3:6, 2:5].min() == 1


def test_the_attack_wins_nothing_on_certified_images(pipeline: Pipeline, split: Split) -> None:
    report = attack_report(pipeline, network, split, patch=4, n=2, others=1)
    proved = report["levels"]["proved"]
    assert proved["images"] == 2
    assert proved["tried"] == 2 * (3 * 13**2 + 7**2)
    assert proved["agreed"] == proved["proved"] == 0
    assert attack_table(report).row_count == 3


def test_the_attack_fools_where_there_is_no_certificate(pipeline: Pipeline) -> None:
    image = np.full((3, SIZE, SIZE), 0.1, np.float32)
    image[0] = 0.45
    found = attack(pipeline, network, image, 0, MaskSet(SIZE, SIZE, 5, 4), np.random.default_rng(0))
    assert found["fooled"] > 0


def test_votes_of_one_spot_stand_out() -> None:
    logits = np.array([[5.0, 0.0, 1.0], [5.0, 0.0, 1.0]])
    masked = np.tile(logits[:, None], (1, 4, 1))
    masked[0, 2] = [0.0, 4.0, 1.0]
    margins, labels = flips(logits, masked)
    assert margins[0].tolist() == [-4, -4, 4, -4]
    assert labels[0, 2] == 1
    for score in SCORES.values():
        values = score(logits, masked)
        assert values[0] > values[1]


def test_votes_flag_and_answer(pipeline: Pipeline, split: Split) -> None:
    voted = vote(pipeline, split.x, lambda *_: None)
    assert voted.masked["small"].shape == (10, 16, 3)
    assert len(mask_sets(32)["bands"]) == 14
    attacked = Voted(voted.p_value, 1 - voted.served.clip(max=1), voted.logits.copy(), dict(voted.masked))
    attacked.masked["large"] = voted.masked["large"].copy()
    attacked.masked["large"][:, 3] = [0.0, 99.0, 0.0]
    assert set(label_under(attacked, "large")[voted.logits.argmax(1) != 1]) == {1}
    found = judged(attacked, np.ones(10), voted, "large", "lead", split.group)
    assert found["vote"]["flagged_0.05"]["mean"] >= 0.8
    report = {"masks": "large", "score": "lead", "test": {"toy": {"n": 10, **found}}}
    assert votes_table(report, "test").row_count == 1
    assert set(SETS["large + bands"]) <= set(voted.masked)
    assert RATES == (0.01, 0.05)

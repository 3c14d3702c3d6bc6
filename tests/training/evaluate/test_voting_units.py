"""The units of votes of masks, on a tiny bundle: what is guaranteed holds against whoever tries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.core.loading import Bundle, load_bundle
from gateway.core.votes import SHARE
from tests.training.evaluate.conftest import TINY
from training.bundling.votes import with_votes
from training.data.dataset import Dataset
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.store import Store
from training.evaluate.measurements.votes import UNITS, Voting, VotingAdaptive, adaptive_votes, votes
from training.evaluate.units import UNITS as ALL


@pytest.fixture(scope="module")
def voting(bundle: Bundle, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder: Path = tmp_path_factory.mktemp("voting")
    with_votes(bundle.path, folder / "bundle", patch=3)
    settings = TINY.model_copy(update={"voted": 16, "adaptive_patched": 4, "adaptive_steps": 6})
    return Bench(load_bundle(folder / "bundle"), data, settings, Store(folder / "work"))


def test_what_is_guaranteed_is_won_by_nobody(voting: Bench) -> None:
    benign, attacked = votes(voting), adaptive_votes(voting)
    assert isinstance(benign.section, Voting)
    assert isinstance(attacked.section, VotingAdaptive)
    assert (benign.section.n, attacked.section.n, benign.section.patch) == (16, 4, 3)
    outcomes = benign.outcomes
    assert (outcomes["voted_guaranteed_0.01"] <= outcomes["voted_guaranteed_0.05"]).all()
    assert (outcomes["voted_flagged_0.01"] <= outcomes["voted_flagged_0.05"]).all()
    tried = voting.right_first(4)
    inside = tried[tried < 16]
    won = attacked.outcomes["voted_adaptive_0.05"][: len(inside)]
    assert not (won & outcomes["voted_guaranteed_0.05"][inside]).any()
    for unit in UNITS:
        assert unit.fits((benign if unit.name == "votes" else attacked).section.to_json())
        shown = unit.places[0].body((benign if unit.name == "votes" else attacked).section.to_json())
        assert shown


def test_half_of_alpha_is_the_masks(voting: Bench) -> None:
    rule = voting.bundle.calibration("cpu", "fp32").votes
    assert rule is not None
    assert SHARE == 0.5
    assert rule.n == len(voting.data.calibrate)


def test_bundles_whose_masks_cannot_vote_have_no_such_unit(bundle: Bundle, data: Dataset, voting: Bench) -> None:
    for name in ("votes", "votes_adaptive"):
        assert ALL[name].images(TINY, bundle, data) == 0
        assert ALL[name].images(voting.settings, voting.bundle, data) == {"votes": 16, "votes_adaptive": 4}[name]
    assert np.isfinite(voting.bundle.arrays["cpu-fp32/votes"]).all()

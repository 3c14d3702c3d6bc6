"""The units of votes of masks, on a tiny bundle: what is guaranteed holds against whoever tries."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.core.loading import Bundle, load_bundle
from gateway.core.votes import votes_part
from tests.training.evaluate.conftest import TINY
from tests.training.small_fields import write_small_field
from training.bundling.small_field import TENSORS, with_small_field
from training.bundling.votes import with_votes
from training.data.dataset import Dataset
from training.evaluate.harness.bench import Bench
from training.evaluate.harness.found import value_of
from training.evaluate.harness.store import Store
from training.evaluate.measurements.votes import (
    UNITS,
    Voters,
    Voting,
    VotingAdaptive,
    adaptive_votes,
    votes,
    votes_unaware,
)
from training.evaluate.units import UNITS as ALL


@pytest.fixture(scope="module", params=["masks", "small_field"])
def voting(
    request: pytest.FixtureRequest, bundle: Bundle, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    folder, subject = tmp_path_factory.mktemp("voting"), bundle.path
    if request.param == "small_field":
        weights = write_small_field(folder / "fields.safetensors", data)
        subject = with_small_field(subject, folder / "with", weights).path
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.bundling.votes.BEYOND", 0.5)  # the tiny bundle has too few groups for less than half
        with_votes(subject, folder / "bundle", patch=3)
    settings = TINY.model_copy(update={"voted": 16, "voted_patched": 4, "adaptive_steps": 6})
    return Bench(load_bundle(folder / "bundle"), data, settings, Store(folder / "work"))


def test_what_is_guaranteed_is_won_by_nobody(voting: Bench) -> None:
    benign, attacked = votes(voting), adaptive_votes(voting)
    assert isinstance(benign.section, Voting)
    assert isinstance(attacked.section, VotingAdaptive)
    assert (benign.section.n, attacked.section.n, benign.section.patch) == (16, 4, 3)
    assert benign.section.by == attacked.section.by
    outcomes = benign.outcomes
    assert (outcomes["voted_guaranteed_0.01"] <= outcomes["voted_guaranteed_0.05"]).all()
    assert (outcomes["voted_flagged_0.01"] <= outcomes["voted_flagged_0.05"]).all()
    tried = voting.right_first(4)
    inside = tried[tried < 16]
    won = attacked.outcomes["voted_adaptive_0.05"][: len(inside)]
    assert not (won & outcomes["voted_guaranteed_0.05"][inside]).any()
    for name, found in (("votes", benign), ("votes_adaptive", attacked)):
        (unit,) = (each for each in UNITS if each.name == name)
        assert unit.fits(found.section.to_json())
        assert unit.places[0].body(found.section.to_json())


def test_what_votes_find_is_told_at_measured_rates_and_beside_the_system_without(
    voting: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = ("dull_sticker", "fgsm_8")
    monkeypatch.setattr("training.evaluate.measurements.votes.FAMILIES", families)
    found = votes_unaware(voting)
    (unit,) = (each for each in UNITS if each.name == "votes_unaware")
    assert unit.fits(found.section.to_json())
    assert isinstance(found.section, Voters)
    assert set(found.figures) == {f"voted_{name}_{rate}" for name in families for rate in (0.01, 0.05)}
    assert set(found.figures) <= set(unit.figures)
    for name, row in found.section.votes_unaware.items():
        fooled = found.outcomes[f"voted_fooled_{name}"]
        assert (row.n, row.fooled) == (len(fooled), fooled.sum())
        if row.fooled:
            assert row.measured.at_5 == value_of(found.figures[f"voted_{name}_0.05"], found.outcomes)
            assert row.measured.at_1 is not None
            assert row.measured.at_5 is not None
            assert row.measured.at_1 <= row.measured.at_5
        else:
            assert row.measured.at_5 is row.without.at_5 is row.at_5 is row.recovered is None
    assert unit.places[0].body(found.section.to_json()["votes_unaware"])


def test_what_votes_has_its_part_of_alpha(voting: Bench) -> None:
    rule = voting.bundle.calibration("cpu", "fp32").votes
    assert rule is not None
    assert votes_part(0.05, rule.beyond) == pytest.approx(0.025)
    assert rule.n == len(voting.data.calibrate)


def test_bundles_whose_masks_cannot_vote_have_no_such_unit(bundle: Bundle, data: Dataset, voting: Bench) -> None:
    for name, n in (("votes", 16), ("votes_adaptive", 4), ("votes_unaware", TINY.patched)):
        assert ALL[name].images(TINY, bundle, data) == 0
        assert ALL[name].images(voting.settings, voting.bundle, data) == n
    assert np.isfinite(voting.bundle.arrays["cpu-fp32/votes"]).all()


def test_an_attack_on_the_network_of_small_fields_needs_its_tensors(voting: Bench, data: Dataset) -> None:
    path = voting.bundle.path / TENSORS
    if path.is_file():
        path.rename(path.with_suffix(".moved"))
        assert ALL["votes_adaptive"].images(voting.settings, voting.bundle, data) == 0
        path.with_suffix(".moved").rename(path)

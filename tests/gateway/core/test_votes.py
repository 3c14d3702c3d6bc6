"""Votes of masks: what they say, that no patch has a say in them, and what becomes of a verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Masked, Pipeline
from gateway.core.rules import VoteRule
from gateway.core.verdict import Verdict
from gateway.core.votes import KNEE, NAME, Voted, Votes, joined, margins, objections, votes_part
from gateway.errors import BundleError
from tests.gateway.tiny import SIZE, add_votes, clean_image, patched_image, speckled_image, write_bundle

MASKS = MaskSet(SIZE, SIZE, 6, 4)
UNMASKED = np.zeros((SIZE, SIZE), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_votes(write_bundle(tmp_path_factory.mktemp("votes") / "tiny"))


@pytest.fixture(scope="module")
def voting(folder: Path) -> Pipeline:
    bundle = load_bundle(folder)
    return Pipeline.on(Engine.open(bundle, device="cpu"), bundle, votes=True)


def under(pipeline: Pipeline, pixels: np.ndarray) -> np.ndarray:
    """Logits (M, K) of pixels (C, H, W) under each mask."""
    return np.stack([logits_of(pipeline, pixels, mask) for mask in MASKS.singles()])


def logits_of(pipeline: Pipeline, pixels: np.ndarray, mask: np.ndarray = UNMASKED) -> np.ndarray:
    (row,) = pipeline.answer([Masked(pixels, mask)])
    assert isinstance(row, np.ndarray)
    return row


def test_an_objection_is_a_lead_in_probability() -> None:
    logits = np.log(np.array([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]]))
    leads, others = objections(np.array([0]), logits)
    np.testing.assert_allclose(leads, [[-0.5, 0.5]])
    np.testing.assert_array_equal(others, [[1, 1]])
    np.testing.assert_allclose(margins(np.array([0]), logits), [-0.5])
    votes = Votes(VoteRule(patch=6, masks_per_axis=4, n=20, groups=20), SIZE, SIZE, np.linspace(-1, 0, 20), np.ones(20))
    sixteen = np.repeat(logits[0, :1], 16, axis=0)
    sixteen[5] = logits[0, 1]
    found = votes.vote(0, sixteen)
    assert (found.mask, found.index, found.box) == (5, 1, MASKS.boxes[5])
    assert found.objection == pytest.approx(0.5)
    assert found.p_value == pytest.approx(1 / 21)
    assert votes.p_values(np.array([votes.limit(0.1) + 1e-9]))[0] <= 0.1 < votes.p_values(np.array([-0.5]))[0]


@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_joined_p_value_is_within_a_divided_budget(p: float, votes: float) -> None:
    both = joined(p, votes)
    assert max(p, votes) / 2 < both or both >= min(p, votes)
    assert 0 < both <= 1
    assert both <= min(1.0, 2 * min(p, votes)) + 1e-12


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.floats(1e-4, 0.99), st.floats(0.1, 0.9))
def test_a_joined_p_value_is_the_alpha_of_which_one_has_its_part(
    p: float, votes: float, alpha: float, beyond: float
) -> None:
    part = votes_part(alpha, beyond)
    assert 0 < part < alpha
    assert part == pytest.approx(alpha / 2) or alpha > KNEE
    assume(min(abs(votes - part), abs(p - (alpha - part))) > 1e-9)
    assert (joined(p, votes, beyond) <= alpha) == (votes <= part or p <= alpha - part)


def test_a_joined_p_value_is_valid_whatever_the_two_share() -> None:
    rng = np.random.default_rng(0)
    alone = rng.uniform(size=20_000)
    for other in (alone, 1 - alone, rng.uniform(size=20_000)):
        for beyond in (0.5, 0.7):
            both = np.array([joined(p, v, beyond) for p, v in zip(alone, other, strict=True)])
            for alpha in (0.01, 0.05, 0.2):
                assert (both <= alpha).mean() <= alpha + 3 * np.sqrt(alpha / len(both))


def test_no_patch_lowers_the_objection_below_the_unpatched_image_s(voting: Pipeline) -> None:
    """Every place, contents of every colour and of noise: a wrong label meets at least the margin."""
    rng = np.random.default_rng(1)
    colours = [np.array(c, np.float32) for c in np.ndindex(2, 2, 2)]
    for image in (clean_image((150, 0, 0)), clean_image((90, 60, 10)), speckled_image()):
        pixels = np.moveaxis(image, 2, 0).astype(np.float32) / 255
        label = int(logits_of(voting, pixels).argmax())
        bound = float(margins(np.array([label]), under(voting, pixels)[None])[0])
        wrong = 0
        for y in range(SIZE - 5):
            for x in range(SIZE - 5):
                for colour in [*colours, None]:
                    patched = pixels.copy()
                    content = rng.uniform(size=(3, 6, 6)) if colour is None else colour[:, None, None]
                    patched[:, y : y + 6, x : x + 6] = content
                    served = int(logits_of(voting, patched).argmax())
                    if served != label:
                        wrong += 1
                        lead = objections(np.array([served]), under(voting, patched)[None])[0].max()
                        assert lead >= bound - 1e-6
        assert wrong


def test_masks_flag_a_patch_that_the_other_scores_let_pass(voting: Pipeline, folder: Path) -> None:
    image = clean_image((150, 0, 0))
    image[4:10, 4:10] = (0, 0, 249)  # not saturated: no region of attack, no score
    bundle = load_bundle(folder)
    silent = Pipeline.on(voting.engine, bundle)
    (alone,), (voted,) = silent.decide_images([image]), voting.decide_images([image])
    assert alone.level == "none"
    assert alone.voted is None
    assert (voted.level, voted.served.prediction.label) == ("flagged", "blue")
    assert voted.voted is not None
    assert (voted.labels[voted.voted.index], voted.voted.objection > 0.2) == ("red", True)
    verdict = voted.raw.verdict
    assert verdict.p_without_votes == alone.raw.verdict.p_value
    assert verdict.p_value == joined(alone.raw.verdict.p_value, voted.voted.p_value) < 0.01
    assert voted.strongest_evidence == NAME
    (clean,) = voting.decide_images([clean_image((150, 0, 0))])
    assert clean.level == "none"


def test_images_that_a_screen_lets_through_are_voted_on(voting: Pipeline) -> None:
    image = clean_image((150, 0, 0))
    image[4:10, 4:10] = (0, 0, 249)
    (decision,) = voting.decide_images([image], explain=False, screening="on")
    assert (decision.stage, decision.level) == ("screen", "flagged")


def test_a_patch_is_flagged_by_its_own_evidence_too(voting: Pipeline) -> None:
    (decision,) = voting.decide_images([patched_image()])
    assert decision.level == "flagged"
    assert dict(decision.evidence)[NAME] == decision.voted.p_value  # type: ignore[union-attr]


def verdict(p: float, **changes: object) -> Verdict:
    given = {"p_value": p, "alpha": 0.05, "p_cutoff": 0.05, "flagged": p <= 0.05, "gated": p <= 0.1, "evidence": {}}
    return Verdict(**{**given, "layers": {}, "suspect_alpha": 0.1, "suspect_cutoff": 0.1, **changes})  # type: ignore[arg-type]


def voted(p: float) -> Voted:
    return Voted(0.5, 1, 0, MASKS, p)


def test_the_kind_follows_the_flag() -> None:
    calm = verdict(0.4, kind="ordinary", p_unfamiliar=0.9, p_attacked=0.6).with_votes(voted(0.004))
    assert (calm.flagged, calm.kind, calm.level) == (True, "attacked", "flagged")
    lost = verdict(0.04, kind="attacked", p_unfamiliar=0.9, p_attacked=0.6).with_votes(voted(0.9))
    assert (lost.flagged, lost.kind, lost.level) == (False, "ordinary", "suspect")


def test_the_gate_stays_as_it_was_and_the_level_follows_the_joined_p_value() -> None:
    gated = verdict(0.09).with_votes(voted(0.9))
    assert (gated.gated, gated.level, gated.p_value) == (True, "none", 0.18)
    raised = verdict(0.9).with_votes(voted(0.04))
    assert (raised.gated, raised.level) == (False, "suspect")
    assert not raised.flagged_without_votes
    assert verdict(0.02).with_votes(voted(0.9)).flagged_without_votes
    assert not verdict(0.04).with_votes(voted(0.9)).flagged_without_votes
    assert verdict(0.04).flagged_without_votes


def test_an_alpha_that_cannot_be_halved_is_refused(folder: Path) -> None:
    bundle = load_bundle(folder)
    engine = Engine.open(bundle, device="cpu")
    few = add_votes(write_bundle(folder.parent / "few"), groups=100)
    assert Pipeline.on(engine, bundle, votes=True).smallest_p > Pipeline.on(engine, bundle).smallest_p
    with pytest.raises(ValueError, match=r"halve alpha 0\.01"):
        Pipeline.on(engine, load_bundle(few), votes=True)


def test_a_bundle_without_a_rule_cannot_vote(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "tiny"))
    with pytest.raises(BundleError, match="palisade votes"):
        Pipeline.on(Engine.open(bundle, device="cpu"), bundle, votes=True)

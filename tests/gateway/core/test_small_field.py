"""Networks of small fields: what they prove holds against every patch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answers.certificate_request import Asked, CertificatePolicy, wanted
from gateway.core.certificate import CertificateWanted, certificate_of
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from gateway.core.rules import VoteRule
from gateway.core.small_field import (
    SMALL_FIELD,
    TEMPERATURE,
    SmallFieldFound,
    SmallFieldSpec,
    WindowSet,
    found_in,
    windows_for,
)
from gateway.core.votes import Votes, margins, objections
from gateway.errors import BadParameter, BundleError
from tests.gateway.core.double_masking import double_masked, neighbours
from tests.gateway.tiny import FIELDS, SIZE, add_small_field, add_votes, clean_image, patched_image, write_bundle

SIDE, PATCH, CLASSES = 5, 2, 3
SPEC = SmallFieldSpec(field=2, stride=1, first=0, height=4, width=4)
PROVED = clean_image((200, 0, 0))
Network = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_small_field(write_bundle(tmp_path / "tiny"))


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    bundle = load_bundle(folder)
    return Pipeline.on(Engine.open(bundle, device="cpu"), bundle)


def network(seed: int) -> Network:
    """Evidence (..., K, 4, 4) of images (..., 5, 5), each cell of which sees 2 x 2 pixels."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((4, 6)), rng.standard_normal((6, CLASSES))
    place = rng.standard_normal((4, 4, 6)) * 0.3

    def cells(images: np.ndarray) -> np.ndarray:
        seen = np.stack([images[..., y : y + 4, x : x + 4] for y, x in product(range(2), repeat=2)], -1)
        return np.moveaxis(np.maximum((seen - 0.5) @ first + place, 0) @ second, -1, -3)

    return cells


def labels_without_two(cells: np.ndarray) -> np.ndarray:
    """Labels (N, Q, Q) of evidence (N, K, h, w) without every two windows; without one of them on the diagonal."""
    windows = windows_for(SPEC, SIDE, SIDE, PATCH).windows.T
    flat = cells.reshape(*cells.shape[:2], -1)
    return np.stack([[(flat * (1 - np.maximum(a, b))).sum(-1).argmax(-1) for b in windows] for a in windows]).transpose(
        2, 0, 1
    )


def test_every_patch_is_in_the_ball_of_what_was_proved() -> None:
    """No image within one patch of a proved one has another label by double masking, which is what is stated."""
    proved = 0
    for seed in range(150):
        cells = network(seed)
        rng = np.random.default_rng(seed)
        image = np.full((SIDE, SIDE), rng.choice([0.0, 0.5, 1.0]))
        image[rng.integers(SIDE), rng.integers(SIDE)] = rng.choice([0.0, 1.0])
        labels = labels_without_two(cells(image[None]))[0]
        if (labels != labels[0, 0]).any():
            continue
        proved += 1
        around = labels_without_two(cells(neighbours(image, PATCH)))
        assert {double_masked(each) for each in around} == {int(labels[0, 0])}
    assert proved > 20


@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(-4, 1), st.integers(1, 12), st.integers(1, 20), st.integers(1, 6)
)
def test_one_window_holds_all_that_a_patch_touches(
    field: int, stride: int, first: int, cells: int, pixels: int, patch: int
) -> None:
    patch = min(patch, pixels)
    spec = SmallFieldSpec(field=field, stride=stride, first=first, height=cells, width=cells)
    ranges = spec.touched(cells, pixels, patch)
    for start in range(pixels - patch + 1):
        sees = [
            i
            for i in range(cells)
            if set(range(first + i * stride, first + i * stride + field)) & set(range(start, start + patch))
        ]
        assert not sees or any(begin <= sees[0] and sees[-1] < end for begin, end in ranges)


@pytest.mark.parametrize("patch", [0, SIZE + 1])
def test_a_patch_has_to_fit(patch: int) -> None:
    with pytest.raises(ValueError, match="patch must be"):
        windows_for(FIELDS, SIZE, SIZE, patch)


def test_the_graph_finds_what_summing_by_hand_finds(pipeline: Pipeline) -> None:
    engine = pipeline.small_field
    assert engine is not None
    rng = np.random.default_rng(0)
    pixels = rng.random((8, 3, SIZE, SIZE), np.float32)
    pixels[:4, 0] = 1.0
    for patch in (1, 2, 5):
        windows, evidence = engine.windows_for(patch), engine.evidence(pixels).reshape(8, 3, -1)
        for found, cells in zip(engine.prove(pixels, patch), evidence, strict=True):
            assert found.index == cells.sum(1).argmax()
            for lead, kept in ((found.one, 1 - windows.windows), (found.two, windows.kept)):
                logits = cells @ kept
                others = np.delete(logits, found.index, axis=0).max(0)
                assert lead == pytest.approx(float((logits[found.index] - others).min()), abs=1e-5)


def test_what_is_not_a_number_proves_nothing() -> None:
    logits, nan = np.array([[1.0, 0.0]]), np.array([np.nan])
    (found,) = found_in(logits, nan, nan, np.array([1e9]))
    (unsure,) = found_in(logits, np.array([5.0]), np.array([5.0]), np.array([-1.0]))
    assert found.two == -np.inf
    assert unsure.two == -1.0, "classes that were not summed one by one count by their bound"
    wanted_ = CertificateWanted(MaskSet(SIZE, SIZE, 2, 4))
    assert certificate_of(found, 0, wanted_, 1e-3).level == "none"
    assert certificate_of(SmallFieldFound(1, 5.0, 5.0), 0, wanted_, 1e-3).level == "none", "of another label"


def test_a_network_that_sees_more_than_is_stated_is_refused(tmp_path: Path) -> None:
    less = FIELDS.model_copy(update={"field": 3})
    bundle = load_bundle(add_small_field(write_bundle(tmp_path / "tiny"), stated=less))
    with pytest.raises(BundleError, match="see more than the manifest states"):
        Pipeline.on(Engine.open(bundle, device="cpu"), bundle)


def test_the_file_and_what_the_manifest_states_of_it_belong_together(folder: Path) -> None:
    (folder / SMALL_FIELD).rename(folder / "other.onnx")
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_it_is_asked_first_and_masks_after_it(pipeline: Pipeline) -> None:
    masks = MaskSet(SIZE, SIZE, 2, 4)
    (decision,) = pipeline.decide_images([PROVED], explain=False)
    found = pipeline.certified(decision, CertificateWanted(masks)).certificate
    assert found is not None
    assert (found.by, found.level, found.forwards, found.complete) == ("small_field", "proved", 1, True)
    for settings in ({"votes": True}, {"thorough": True}, {"by": "masks"}):
        made = pipeline.certified(decision, CertificateWanted(masks, **settings)).certificate
        assert made is not None
        assert (made.by, made.level) == ("masks", "proved")
    (patched,) = pipeline.decide_images([patched_image()], explain=False)
    either, alone = (
        pipeline.certified(patched, CertificateWanted(masks, by=by)).certificate for by in ("any", "small_field")
    )
    assert either is not None
    assert alone is not None
    assert (either.by, alone.by, alone.forwards) == ("masks", "small_field", 1)
    label = pipeline.certified_label(to_pixels(PROVED)[0], 1, CertificateWanted(masks, by="small_field"), lead=1e-3)
    assert label.level == "none", "it says something of the label that it gives itself alone"


def test_only_bundles_that_have_one_are_asked(pipeline: Pipeline, tmp_path: Path) -> None:
    asked, policy = Asked(certify="small_field"), CertificatePolicy()
    made = wanted(asked, pipeline, policy, "full", votes=True)
    assert made is not None
    assert (made.by, made.votes, made.forwards) == ("small_field", False, 1)
    required = wanted(asked, pipeline, CertificatePolicy(require="proved"), "full")
    assert required is not None
    assert required.by == "any"
    bundle = load_bundle(write_bundle(tmp_path / "without"))
    without = Pipeline.on(Engine.open(bundle, device="cpu"), bundle)
    with pytest.raises(BadParameter, match="no network of small fields"):
        wanted(asked, without, policy, "full")


@pytest.fixture
def voting(folder: Path) -> Pipeline:
    bundle = load_bundle(add_votes(folder, patch=4, by="small_field"))
    return Pipeline.on(Engine.open(bundle, device="cpu"), bundle, votes=True)


def test_its_votes_are_those_without_every_window(voting: Pipeline) -> None:
    assert voting.votes is not None
    assert voting.small_field is not None
    hidden = voting.votes.masks
    assert isinstance(hidden, WindowSet)
    image = clean_image((150, 0, 0))
    image[4:8, 4:8] = (0, 0, 249)
    (decision,) = voting.decide_images([image], explain=False)
    evidence = voting.small_field.evidence(to_pixels(image))[0]
    flat, windows = evidence.reshape(3, -1), voting.small_field.windows_for(4).windows
    left = (flat.sum(1) - (flat @ windows).T) / TEMPERATURE
    expected = objections(np.array([decision.served.prediction.index]), left[None])[0]
    assert decision.voted is not None
    assert decision.voted.objection == pytest.approx(float(expected.max()), abs=1e-5)
    top, left, height, width = decision.voted.box
    assert (0 <= top < top + height <= SIZE, 0 <= left < left + width <= SIZE) == (True, True)
    assert len(hidden.boxes) == len(hidden) == windows.shape[1]
    assert hidden.share == 16 / SIZE**2


def test_no_patch_lowers_its_objection_below_the_unpatched_image_s() -> None:
    """Every place and content: whatever else is served meets at least the margin of the image without the patch."""
    hidden, tried = WindowSet(SPEC, SIDE, SIDE, PATCH), 0
    for seed in range(40):
        cells, rng = network(seed), np.random.default_rng(seed)
        image = np.full((SIDE, SIDE), rng.choice([0.0, 0.5, 1.0]))
        image[rng.integers(SIDE), rng.integers(SIDE)] = rng.choice([0.0, 1.0])
        label = np.array([int(cells(image[None])[0].sum((1, 2)).argmax())])
        bound = float(margins(label, hidden.logits(cells(image[None])))[0])
        under = hidden.logits(cells(neighbours(image, PATCH)))
        for other in {0, 1, 2} - {int(label[0])}:
            leads, _ = objections(np.full(len(under), other), under)
            tried += len(leads)
            assert (leads.max(1) >= bound - 1e-9).all()
    assert tried > 10_000


def test_a_window_hides_the_places_whose_every_cell_it_holds() -> None:
    for patch in (PATCH, PATCH + 1):
        hidden = WindowSet(SPEC, SIDE, SIDE, patch)
        for side in range(1, patch + 1):
            found, places = hidden.hides(side), SIDE - side + 1
            assert found.shape == (places**2, len(hidden))
            assert found.any(1).all(), "each place is hidden by a window"
            windows = windows_for(SPEC, SIDE, SIDE, patch).windows
            for place in range(places**2):
                top, left = divmod(place, places)
                image = np.zeros((SIDE, SIDE))
                image[top : top + side, left : left + side] = 1.0
                seen = [
                    any(
                        image[max(0, y) : max(0, y + SPEC.field), max(0, x) : max(0, x + SPEC.field)].any()
                        for y in [SPEC.first + i * SPEC.stride]
                        for x in [SPEC.first + j * SPEC.stride]
                    )
                    for i in range(SPEC.height)
                    for j in range(SPEC.width)
                ]
                np.testing.assert_array_equal(found[place], (windows[seen] == 1).all(0))


def test_the_whole_image_is_heard_where_the_rule_says_how_much_more_it_counts() -> None:
    benign, weights = np.linspace(-1, 0, 20), np.ones(20)
    rule = VoteRule(patch=PATCH, by="small_field", whole=0.5, n=20, groups=20)
    votes = Votes(rule, SIDE, SIDE, benign, weights, small_field=SPEC)
    under = np.log(np.tile([0.6, 0.3, 0.1], (len(votes.masks), 1)))
    under[3] = np.log([0.2, 0.7, 0.1])
    for whole, heard, box in (
        ([0.2, 0.2, 0.6], (0.4, 2, None), (0, 0, SIDE, SIDE)),  # counts as .7, beyond .5 without a window
        ([0.7, 0.1, 0.2], (0.5, 1, 3), votes.masks.boxes[3]),  # counts as .25
    ):
        found = votes.vote(0, under, np.log(np.array(whole)))
        assert (found.index, found.mask, found.box) == (*heard[1:], box)
        assert found.objection == pytest.approx(heard[0])
        counts = 1 - 0.5 * (1 - heard[0]) if found.mask is None else heard[0]
        assert found.p_value == votes.p_values(np.array([counts]))[0]
    assert votes.vote(0, under).mask == 3
    deaf = Votes(rule.model_copy(update={"whole": None}), SIDE, SIDE, benign, weights, small_field=SPEC)
    assert deaf.vote(0, under, np.log(np.array([0.1, 0.8, 0.1]))).mask == 3
    with pytest.raises(ValueError, match="whole is of the network of small fields"):
        VoteRule(patch=PATCH, masks_per_axis=4, whole=0.5, n=20, groups=2)


def test_votes_of_a_network_that_is_not_there_are_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    with pytest.raises(ValueError, match="small fields, which is not there"):
        add_votes(folder, by="small_field")
    with pytest.raises(ValueError, match="masks_per_axis is of masks"):
        VoteRule(patch=4, by="small_field", masks_per_axis=4, n=20, groups=2)
    with pytest.raises(ValueError, match="masks_per_axis is of masks"):
        VoteRule(patch=4, n=20, groups=2)

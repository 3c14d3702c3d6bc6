from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.core.certificate import Certificate, CertificateWanted, certify
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine
from gateway.core.loading import load_bundle
from gateway.core.masks import MaskSet
from gateway.core.pipeline import Pipeline
from tests.gateway.core.double_masking import double_masked, neighbours
from tests.gateway.tiny import SIZE, clean_image, patched_image

SIDE, PATCH = 6, 2
MASKS = MaskSet(SIDE, SIDE, PATCH, 2)
Network = Callable[[np.ndarray], np.ndarray]


def filled(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What the mask hides of images (..., S, S) takes the mean of what it does not."""
    known = mask == 0
    mean = images[..., known].mean(-1) if known.any() else np.full(images.shape[:-2], 0.5)
    return np.where(known, images, mean[..., None, None])


def network(seed: int) -> Network:
    """Logits (..., 3) of images (..., S, S), by two layers of random weights."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((SIDE * SIDE, 8)), rng.standard_normal((8, 3))
    return lambda images: np.maximum((images.reshape(*images.shape[:-2], -1) - 0.5) @ first, 0) @ second


def certified(image: np.ndarray, net: Network, *, thorough: bool = False, lead: float = 1e-9) -> Certificate:
    steps = certify(int(np.argmax(net(image))), CertificateWanted(MASKS, thorough=thorough), lead)
    masks = next(steps)
    try:
        while True:
            masks = steps.send(np.stack([net(filled(image, mask)) for mask in masks]))
    except StopIteration as stop:
        return stop.value


def masked_labels(images: np.ndarray, net: Network) -> np.ndarray:
    """Labels (N, M, M) of images under every two masks; under one of them on the diagonal."""
    singles = MASKS.singles()
    return np.stack([[net(filled(images, np.maximum(a, b))).argmax(-1) for b in singles] for a in singles]).transpose(
        2, 0, 1
    )


def image_of(seed: int) -> np.ndarray:
    """An image whose label rests on more than one place: the pixels of one half are alike."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE), rng.choice([0.0, 1.0]))
    image[:, : SIDE // 2] = rng.choice([0.0, 0.5, 1.0])
    image[rng.integers(SIDE), rng.integers(SIDE)] = 0.5
    return image


@pytest.mark.parametrize("seed", range(6))
def test_no_patch_of_any_place_and_content_contradicts_a_certificate(seed: int) -> None:
    """All 2,025 neighbours of images, each of which may be the unpatched one."""
    net = network(seed)
    levels = set()
    for image in (image_of(100 * seed + i) for i in range(8)):
        found = certified(image, net)
        if found.level in levels:
            continue
        levels.add(found.level)
        if found.level == "none":
            continue
        for labels in masked_labels(neighbours(image, PATCH), net):
            assert found.index in np.diagonal(labels)
            if found.level == "proved":
                assert double_masked(labels) == found.index


def test_the_networks_of_the_test_above_prove_some_images_and_not_others() -> None:
    levels = [certified(image_of(100 * s + i), network(s)).level for s in range(6) for i in range(8)]
    assert {"none", "agreed", "proved"} == set(levels)


def test_an_unproved_label_can_be_contradicted() -> None:
    """The level means something: of images without one, most have a neighbour with another label under every mask."""
    net, image = network(0), np.full((SIDE, SIDE), 0.5)
    image[1:3, 1:3] = 1.0
    found = certified(image, net)
    assert found.level == "none"
    assert any(double_masked(labels) != found.index for labels in masked_labels(neighbours(image, PATCH), net))


@pytest.mark.parametrize("seed", range(6))
def test_thorough_certificates_are_the_same_and_have_every_vote(seed: int) -> None:
    net = network(seed)
    for image in (image_of(100 * seed + i) for i in range(8)):
        short, whole = certified(image, net), certified(image, net, thorough=True)
        assert (short.level, short.index) == (whole.level, whole.index)
        assert whole.forwards == MASKS.forwards >= short.forwards
        assert None not in whole.votes


def test_a_narrow_lead_does_not_count() -> None:
    net = network(1)
    images = [image_of(100 + i) for i in range(8)]
    proved = next(image for image in images if certified(image, net).level == "proved")
    narrowest = min(
        np.diff(np.sort(net(filled(proved, np.maximum(a, b))))[-2:])[0]
        for a in MASKS.singles()
        for b in MASKS.singles()
    )
    assert certified(proved, net, lead=0.99 * narrowest).level == "proved"
    assert certified(proved, net, lead=1.01 * narrowest).level != "proved"


def test_one_round_is_enough_for_agreement() -> None:
    steps = certify(0, CertificateWanted(MASKS, level="agreed"), 0.1)
    assert len(next(steps)) == len(MASKS)
    with pytest.raises(StopIteration) as stop:
        steps.send(np.tile(np.array([1.0, 0.0], np.float32), (len(MASKS), 1)))
    assert stop.value.value.level == "agreed"
    assert stop.value.value.forwards == len(MASKS)


def test_masks_over_what_the_label_rests_on_come_first() -> None:
    masks = MaskSet(32, 32, 5, 4)
    first = np.zeros((32, 32))
    first[30, 30] = 1.0
    asked = next(certify(0, CertificateWanted(masks), 0.1, first))
    assert np.array_equal(asked[0], masks.singles()[15])


def test_a_pipeline_certifies_what_it_serves(pipeline: Pipeline) -> None:
    wanted = CertificateWanted(MaskSet(SIZE, SIZE, 2, 3))
    clean, patched = pipeline.decide_images([clean_image((200, 0, 0)), patched_image()], explain=False)
    found = pipeline.certified(clean, wanted).certificate
    assert found is not None
    assert (found.level, found.index, found.forwards) == ("proved", 0, wanted.forwards)
    failed = pipeline.certified(patched, wanted).certificate
    assert failed is not None
    assert failed.level == "none"
    assert failed.index == patched.served.prediction.index


def test_the_answering_network_alone_gives_the_logits_of_the_part(bundle_folder: Path) -> None:
    engine = Engine.open(load_bundle(bundle_folder), device="cpu", threads=1)
    pixels = np.concatenate([to_pixels(clean_image()), to_pixels(patched_image())])
    masks = np.zeros((2, SIZE, SIZE), np.float32)
    masks[:, 2:9, 3:11] = 1.0
    logits = engine.answer(pixels, masks)
    assert np.array_equal(logits, engine.run(pixels, masks, part="verdict").logits)
    pixels[:, :, 2:9, 3:11] = np.random.default_rng(0).random((2, 3, 7, 8), np.float32)
    assert np.array_equal(logits, engine.answer(pixels, masks))

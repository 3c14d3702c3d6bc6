"""Fingerprints: what they survive, what they tell apart, and that they need the salt."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.campaigns.behaviour import LINK
from gateway.campaigns.fingerprint import Fingerprint, Fingerprinter
from gateway.campaigns.records import RECORD
from tests.gateway.campaigns.sequences import SALT, base, scene, view


def make(image: np.ndarray, salt: bytes = SALT) -> Fingerprint:
    pixels = (np.clip(np.rint(image), 0, 255) / 255).astype(np.float32)
    return Fingerprinter(salt, (pixels.shape[0], pixels.shape[1], pixels.shape[2])).make(pixels)


def distance(a: Fingerprint, b: Fingerprint) -> float:
    return float(np.linalg.norm(a.detail.astype(np.float32) - b.detail.astype(np.float32)))


def angle(a: Fingerprint, b: Fingerprint) -> float:
    """Share of the coarse signs that differ."""
    return float(np.mean((a.coarse > 0) != (b.coarse > 0)))


@pytest.mark.parametrize("seed", range(5))
def test_small_changes_stay_near_and_other_images_are_far(seed: int) -> None:
    image, rng = base(seed), np.random.default_rng(seed)
    first = make(image)
    signs = make(image + 8 * rng.choice([-1, 1], image.shape))
    noise = make(image + rng.normal(size=image.shape) * 4)
    levels = make(np.rint(image / 6) * 6)  # as a coarse re-encoding
    for changed in (signs, noise, levels):
        assert distance(first, changed) < LINK
        assert angle(first, changed) < 0.1
        assert first.exact != changed.exact
    assert distance(first, make(base(seed + 100))) > 2 * LINK


def test_a_shift_of_a_pixel_stays_in_the_same_slots() -> None:
    angles = [angle(make(view(scene(s), 16, 16, 96)), make(view(scene(s), 16, 19, 96))) for s in range(20)]
    assert np.median(angles) < 0.12


def test_brightness_and_contrast_do_not_count() -> None:
    image = base(3)
    assert distance(make(image), make(20 + 0.7 * image)) < 0.05


def test_distances_are_those_of_the_pixels() -> None:
    rng, image = np.random.default_rng(0), base(1)
    found, true = [], []
    for _ in range(30):
        noise = rng.normal(size=image.shape) * rng.uniform(3, 12)
        a, b = make(image), make(image + noise)
        found.append(distance(a, b) * a.contrast * 255)
        true.append(np.sqrt(np.mean(noise**2)))
    assert np.median(np.abs(np.log(np.array(found) / true))) < 0.15


def test_another_salt_gives_other_fingerprints_and_the_same_salt_the_same() -> None:
    image = base(2)
    a, again, other = make(image), make(image), make(image, b"another")
    assert (a.exact, a.coarse.tolist(), a.detail.tolist()) == (
        again.exact,
        again.coarse.tolist(),
        again.detail.tolist(),
    )
    assert a.exact != other.exact
    assert angle(a, other) > 0.25


def test_the_signs_are_of_the_salt_alone() -> None:
    # Workers and replicas must agree whatever their versions of NumPy: a changed value here breaks rolling upgrades.
    flat = np.linspace(0, 255, 3 * 32 * 32).reshape(3, 32, 32)
    assert make(flat).coarse[:6].tolist() == [-19, 13, 5, -5, -36, -1]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (3, 224, 224)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    found = Fingerprinter(SALT, shape).make(rng.random(shape, np.float32))
    assert (found.coarse.shape, found.detail.shape, np.isfinite(found.detail).all()) == ((64,), (64,), True)


def test_a_flat_image_and_a_wrong_shape() -> None:
    assert not make(np.full((3, 32, 32), 90.0)).detail.any()
    with pytest.raises(ValueError, match="expected"):
        Fingerprinter(SALT, (3, 32, 32)).make(np.zeros((3, 16, 16), np.float32))


def test_bytes_of_a_query() -> None:
    assert RECORD.itemsize <= 300


def test_images_together_have_the_fingerprints_that_they_have_alone() -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((3, 32, 32), np.float32) for _ in range(33)]
    maker = Fingerprinter(SALT, (3, 32, 32))
    for one, together in zip(map(maker.make, images), maker.make_all(images), strict=True):
        assert one.exact == together.exact
        assert one.contrast == pytest.approx(together.contrast)
        assert np.abs(one.coarse.astype(int) - together.coarse).max() <= 1  # up to the rounding of a sum
        assert np.abs(one.detail - together.detail).max() < 1e-3


def test_images_of_different_shapes_are_refused_together() -> None:
    maker = Fingerprinter(SALT, (3, 32, 32))
    with pytest.raises(ValueError, match="expected"):
        maker.make_all([np.zeros((3, 32, 32), np.float32), np.zeros((3, 16, 16), np.float32)])

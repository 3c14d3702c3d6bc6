from __future__ import annotations

import numpy as np
import pytest

from training.bundling.calibrate import Benign
from training.data.corruptions import CHANGES, NOISES, changed, partly_changed

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", [*CHANGES, *NOISES])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_change_changes_and_keeps_the_form(name: str, channels: int) -> None:
    images = IMAGES[..., :channels]
    found = changed(images, name, seed=0)
    assert found.shape == images.shape
    assert found.dtype == np.uint8
    assert (found != images).any()
    assert (changed(images[:1], name, seed=0) == found[:1]).all()  # an image's change is its own


def test_shifts_move_down_and_right() -> None:
    found = changed(IMAGES, "shift_2", seed=0)
    assert (found[:, 2:, 2:] == IMAGES[:, :-2, :-2]).all()
    assert (found[:, 0, 5] == IMAGES[:, 0, 3]).all()  # borders replicated


def test_noise_has_its_size() -> None:
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    noise = changed(grey, "noise_0.05", seed=0) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.05, rel=0.03)


def test_darkness_and_contrast() -> None:
    assert np.allclose(changed(IMAGES, "dark_60", seed=0), 0.6 * IMAGES, atol=1)
    half = changed(IMAGES, "contrast_50", seed=0)
    assert half.std() == pytest.approx(IMAGES.std() / 2, rel=0.05)


def test_turning_keeps_the_middle() -> None:
    even = np.full((1, 32, 32, 3), 77, np.uint8)
    assert (changed(even, "rotate_10", seed=0) == 77).all()


def test_a_share_of_the_images_is_changed_each_by_one_of_those_named() -> None:
    images = np.random.default_rng(1).integers(0, 256, (400, 8, 8, 3)).astype(np.uint8)
    names = ["dark_60", "shift_1"]
    found = partly_changed(images, names, share=0.5, seed=0)
    kinds = np.stack(
        [(found == whole).all((1, 2, 3)) for whole in (images, *(changed(images, n, seed=0) for n in names))]
    )
    assert kinds.any(0).all()
    assert kinds.mean(1) == pytest.approx([0.5, 0.25, 0.25], abs=0.07)
    assert (partly_changed(images, names, share=0.5, seed=0) == found).all()


def test_without_changes_images_stay_as_they_are() -> None:
    assert Benign().images(IMAGES, seed=0) is IMAGES


def test_an_unknown_change_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown change 'snow'; there are jpeg_90"):
        Benign(changes=["snow"])

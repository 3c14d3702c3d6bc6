from __future__ import annotations

import pytest
import torch

from training.data.augment import Augmentation, augment, mask_windows
from training.util.module_modes import seeded

GEOMETRY = Augmentation(rotate=30, translate=0.2, scale=0.3, shear=0.2, flip=True, brightness=0, contrast=0)
STILL = Augmentation(rotate=0, translate=0, scale=0, shear=0, brightness=0, contrast=0)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_image_and_map_move_alike(size: tuple[int, int]) -> None:
    """A map that is a copy of a channel stays a copy of it: augmentation of image and map commute."""
    x = torch.rand(6, 3, *size)
    images, maps = augment(x, GEOMETRY, seeded(0), x[:, 1:])
    torch.testing.assert_close(maps, images[:, 1:], atol=1e-5, rtol=0)
    assert (images - x).abs().mean() > 0.05


def test_colours_change_in_the_image_alone() -> None:
    colours = GEOMETRY.model_copy(update={"brightness": 0.5, "contrast": 0.5})
    x = torch.rand(6, 3, 16, 16)
    images, maps = augment(x, colours, seeded(0), x[:, :1])
    _, plain = augment(x, GEOMETRY, seeded(0), x[:, :1])
    assert maps is not None
    assert plain is not None
    assert torch.equal(maps, plain)
    assert (images[:, :1] - maps).abs().mean() > 0.02


def test_map_does_not_change_the_image() -> None:
    x = torch.rand(4, 3, 16, 16)
    alone, none = augment(x, Augmentation(), seeded(0))
    together, _ = augment(x, Augmentation(), seeded(0), torch.rand(4, 1, 16, 16))
    assert none is None
    torch.testing.assert_close(alone, together)


def test_no_ranges_no_change() -> None:
    x = torch.rand(4, 3, 15, 17)
    images, _ = augment(x, STILL, seeded(0))
    torch.testing.assert_close(images, x, atol=1e-5, rtol=0)


def test_flip_mirrors_half_of_the_images() -> None:
    x = torch.rand(64, 1, 8, 8)
    images, _ = augment(x, STILL.model_copy(update={"flip": True}), seeded(0))
    same = (images - x).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (images - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (same ^ mirrored).all()
    assert 16 < same.sum() < 48


def test_values_stay_in_range() -> None:
    strong = Augmentation(rotate=180, translate=0.5, scale=0.9, shear=0.9, brightness=0.99, contrast=0.99)
    x = torch.rand(64, 3, 16, 16).round()
    images, maps = augment(x, strong, seeded(0), x[:, :1])
    assert maps is not None
    for values in (images, maps):
        assert values.min() >= 0
        assert values.max() <= 1


def test_generator_decides_the_result() -> None:
    x = torch.rand(4, 3, 16, 16)
    a, b, c = (augment(x, Augmentation(), seeded(s))[0] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_brightness_and_contrast_in_closed_form() -> None:
    """Without geometry: (x - mean) gain + mean (1 + offset) for some gain and offset within their ranges."""
    x = 0.4 + 0.2 * torch.rand(32, 3, 8, 8)
    images, _ = augment(x, STILL.model_copy(update={"contrast": 0.3, "brightness": 0.2}), seeded(0))
    gain = images.std((1, 2, 3)) / x.std((1, 2, 3))
    offset = images.mean((1, 2, 3)) / x.mean((1, 2, 3)) - 1
    assert (gain - 1).abs().max() <= 0.3 + 1e-4
    assert offset.abs().max() <= 0.2 + 1e-4
    assert gain.std() > 0.1
    assert offset.std() > 0.06


def test_windows_leave_the_rest_bit_identical() -> None:
    x = torch.rand(64, 3, 20, 20)
    masked = mask_windows(x, seeded(0), share=0.25, count=1, fraction=0.5)
    changed = (masked != x).any(1)
    hit = changed.any(2).any(1)
    assert 16 < hit.sum() < 48  # about half of the batch
    for image in changed[hit]:
        rows, columns = torch.nonzero(image.any(1)).flatten(), torch.nonzero(image.any(0)).flatten()
        assert rows[-1] - rows[0] <= 4  # everything new lies in one 5x5 window
        assert columns[-1] - columns[0] <= 4
        assert image.sum() > 20
    assert masked.min() >= 0
    assert masked.max() <= 1


def test_windows_of_the_whole_batch_and_of_none() -> None:
    x = torch.rand(8, 3, 16, 16)
    assert torch.equal(mask_windows(x, seeded(0), share=0.3, count=2, fraction=0.0), x)
    everywhere = mask_windows(x, seeded(0), share=0.3, count=2, fraction=1.0)
    assert (everywhere != x).flatten(1).any(1).all()
    assert torch.equal(everywhere, mask_windows(x, seeded(0), share=0.3, count=2, fraction=1.0))


def test_colour_is_a_gain_for_each_channel() -> None:
    x = torch.full((8, 3, 6, 6), 0.5)
    images, _ = augment(x, STILL.model_copy(update={"colour": 0.2}), seeded(0))
    gains = images / x
    assert (gains.amax((2, 3)) - gains.amin((2, 3))).max() < 1e-5
    assert 0.8 - 1e-5 <= gains.min() < 0.9
    assert 1.1 < gains.max() <= 1.2 + 1e-5


def test_erasing_hides_one_rectangle_of_one_colour_in_a_share_of_the_images() -> None:
    x = torch.rand(64, 3, 32, 32, generator=seeded(1))
    plain, _ = augment(x, STILL, seeded(0))
    images, _ = augment(x, STILL.model_copy(update={"erase": 0.5}), seeded(0))
    changed = (images != plain).any(1)
    erased = changed.flatten(1).any(1)
    assert 16 < erased.sum() < 48
    for image, where in zip(images[erased], changed[erased], strict=True):
        rows, columns = where.any(1), where.any(0)
        assert torch.equal(where, rows[:, None] & columns[None])
        assert (image[:, where].std(1) < 1e-6).all()
        assert where.float().mean() < 0.17


def test_exposure_is_one_gain_in_stops() -> None:
    x = torch.full((64, 3, 4, 4), 0.2)
    images, _ = augment(x, STILL.model_copy(update={"exposure": 2.0}), seeded(0))
    stops = torch.log2(images / x)
    assert (stops.flatten(1).amax(1) - stops.flatten(1).amin(1)).max() < 1e-5
    assert -2 - 1e-5 <= stops.min() < -1.5
    assert 1.5 < stops.max() <= 2 + 1e-5

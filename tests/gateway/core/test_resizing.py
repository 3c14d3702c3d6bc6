"""Resize rules against torchvision's and Pillow's own, and against what old manifests meant."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Normalisation, Resize, has_torch_arithmetic
from gateway.core.resizing import fitted, scaled_size
from gateway.errors import UndecodableImage

SIZES = [(61, 44), (44, 61), (32, 33), (33, 33), (20, 23), (120, 41), (8, 9)]


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def smooth(width: int, height: int) -> Image.Image:
    """With details of a dozen pixels, as a photograph of this many has."""
    return picture(width // 2, height // 2).resize((width, height), Image.Resampling.BICUBIC)


def spec(side: int = 32, **rule: Any) -> InputSpec:
    return InputSpec(height=side, width=side, resize=Resize.model_validate(rule))


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("resize_to", [32, 37, 46])
def test_shorter_side_is_torchvisions_resize_and_centre_crop(size: tuple[int, int], name: str, resize_to: int) -> None:
    image = picture(*size)
    theirs = transforms.Compose([transforms.Resize(resize_to, InterpolationMode(name)), transforms.CenterCrop(32)])
    ours = fitted(image, spec(rule="shorter_side", filter=name, resize_to=resize_to))
    assert np.abs(ours.astype(int) - np.asarray(theirs(image))).mean() < 0.3
    if max(size) < 2 * min(size):  # longer strips are not scaled as a whole
        np.testing.assert_array_equal(ours, np.asarray(theirs(image)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "most"), [("nearest", 0.01), ("bilinear", 0.6), ("bicubic", 0.6)])
def test_without_antialiasing_as_torch_does_on_tensors(size: tuple[int, int], name: str, most: float) -> None:
    image = picture(*size)
    tensor = F.resize(F.pil_to_tensor(image), [40], InterpolationMode(name), antialias=False)
    theirs = F.center_crop(tensor, [32]).permute(1, 2, 0).numpy()
    ours = fitted(image, spec(rule="shorter_side", filter=name, antialias=False, resize_to=40))
    assert np.abs(ours.astype(int) - theirs).mean() < most


@pytest.mark.parametrize("size", [*SIZES, (700, 300), (300, 700), (40, 40), (32, 90), (1, 2)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("colours", ["RGB", "L"])
def test_torchs_arithmetic_is_torchs_to_the_bit(size: tuple[int, int], name: str, colours: str) -> None:
    image = picture(*size).convert(colours)
    tensor = F.resize(F.pil_to_tensor(image), [40], InterpolationMode(name), antialias=True)
    theirs = F.center_crop(tensor, [32]).permute(1, 2, 0).numpy()
    resize = Resize.model_validate(
        {"rule": "shorter_side", "filter": name, "resize_to": 40, "arithmetic": "torch", "crop_offset": "round"}
    )
    ours = fitted(image, InputSpec(height=32, width=32, channels=3 if colours == "RGB" else 1, resize=resize))
    np.testing.assert_array_equal(ours, theirs)


def test_a_crop_beyond_the_image_is_filled() -> None:
    image = picture(40, 30)
    theirs = transforms.Compose([transforms.Resize(21), transforms.CenterCrop(32)])(image)
    np.testing.assert_array_equal(fitted(image, spec(rule="shorter_side", resize_to=21)), np.asarray(theirs))


RULES = [
    {"rule": "shorter_side", "resize_to": 46},
    {"rule": "stretch", "resize_to": 40},
    {"rule": "pad", "resize_to": 20},
]


@pytest.mark.parametrize("rule", RULES)
def test_an_image_of_the_networks_size_is_taken_as_it_is(rule: dict[str, Any]) -> None:
    """Else audit, samples and calibration, which hold prepared images, would see each of them prepared twice."""
    image, wanted = picture(61, 44), spec(**rule)
    prepared = fitted(image, wanted)
    np.testing.assert_array_equal(fitted(Image.fromarray(prepared), wanted), prepared)


@pytest.mark.parametrize("size", [(61, 44), (44, 61), (32, 32), (9, 31)])
def test_pad_keeps_the_whole_image(size: tuple[int, int]) -> None:
    image = picture(*size)
    made = fitted(image, spec(rule="pad", fill=(1, 2, 3)))
    width, height = scaled_size(size, spec(rule="pad"))
    assert max(width, height) == 32
    left, upper = (32 - width) // 2, (32 - height) // 2
    inside = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(made[upper : upper + height, left : left + width], inside)
    outside = np.ones((32, 32), bool)
    outside[upper : upper + height, left : left + width] = False
    assert (made[outside] == (1, 2, 3)).all()


def test_stretch_to_more_is_cropped() -> None:
    """As timm's `squash` with a crop."""
    image = picture(61, 44)
    whole = np.asarray(image.resize((36, 36), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(
        fitted(image, spec(rule="stretch", filter="bicubic", resize_to=36)), whole[2:34, 2:34]
    )


def test_half_a_pixel_is_rounded_as_stated() -> None:
    image = picture(35, 32)
    whole = np.asarray(image)
    np.testing.assert_array_equal(fitted(image, spec(rule="shorter_side")), whole[:, 2:34])  # 1.5: to even
    np.testing.assert_array_equal(fitted(image, spec(rule="shorter_side", crop_offset="floor")), whole[:, 1:33])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box"])
def test_old_rules_keep_their_pixels(size: tuple[int, int], name: str) -> None:
    image, resample = picture(*size), getattr(Image.Resampling, name.upper())
    cropped = ImageOps.fit(image, (32, 32), resample)
    np.testing.assert_array_equal(fitted(image, spec(rule="center_crop", filter=name)), np.asarray(cropped))
    stretched = np.asarray(image.resize((32, 32), resample))
    np.testing.assert_array_equal(fitted(image, spec(rule="stretch", filter=name)), stretched)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["stretch", "center_crop", "shorter_side", "pad"]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.booleans(),
    st.sampled_from([None, 5, 16, 19]),
    st.sampled_from([(16, 16), (12, 20)]),
    st.booleans(),
)
def test_any_size_fits(
    width: int, height: int, rule: str, name: str, aliased: bool, to: int | None, wanted: tuple[int, int], torchs: bool
) -> None:
    resize = Resize.model_validate(
        {"rule": rule, "filter": name, "antialias": not aliased, "resize_to": None if rule == "center_crop" else to}
    )
    if torchs and has_torch_arithmetic(resize.rule, resize.filter, resize.antialias):
        resize = resize.model_copy(update={"arithmetic": "torch"})
    for channels in (1, 3):
        image = Image.new("RGB" if channels == 3 else "L", (width, height), (9, 9, 9) if channels == 3 else 9)
        made = fitted(image, InputSpec(height=wanted[0], width=wanted[1], channels=channels, resize=resize))
        assert made.shape == (*wanted, channels)
        assert set(np.unique(made)) <= {0, 9}


def test_a_strip_is_not_scaled_as_a_whole() -> None:
    made = fitted(Image.new("RGB", (1, 4000), (7, 7, 7)), spec(rule="shorter_side", resize_to=256))
    assert (made == 7).all()


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ({"filter": "lanczos", "antialias": False}, "needs antialias"),
        ({"rule": "center_crop", "resize_to": 40}, "use shorter_side"),
        ({"filter": "box", "arithmetic": "torch"}, "the arithmetic torch is that of"),
        ({"rule": "center_crop", "arithmetic": "torch"}, "not of center_crop"),
        ({"rule": "shorter_side", "resize_to": 0}, "greater than or equal to 1"),
        ({"rule": "fit"}, "center_crop"),
    ],
)
def test_what_is_undefined_is_refused(stated: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Resize.model_validate(stated)


def test_normalisation_agrees_with_itself() -> None:
    mean, std = Normalisation(channel_order="bgr", scale="byte", mean=[51, 102, 0], std=[255, 51, 1]).of_unit_pixels()
    assert mean == [0.2, 0.4, 0.0]
    assert std == [1.0, 0.2, 1 / 255]
    with pytest.raises(ValidationError, match="3 means and 1 deviations"):
        Normalisation(std=[1.0])
    with pytest.raises(ValidationError, match="3 means for 1 channel"):
        InputSpec(height=8, width=8, channels=1, normalise=Normalisation())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_large_jpegs_are_decoded_at_a_fraction(options: dict[str, object]) -> None:
    data = jpeg(smooth(640, 480), quality=90, **options)
    rule: dict[str, Any] = {"rule": "shorter_side", "resize_to": 36}
    whole, reduced = decode_image(data, spec(**rule)), decode_image(data, spec(**rule, reduced=True))
    assert 0 < np.abs(whole.astype(int) - reduced).mean() < 0.8


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_fraction_of_a_turned_jpeg(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(smooth(320, 640), quality=90, exif=exif)
    rule: dict[str, Any] = {"rule": "shorter_side", "resize_to": 36}
    whole, reduced = decode_image(data, spec(**rule)), decode_image(data, spec(**rule, reduced=True))
    assert np.abs(whole.astype(int) - reduced).mean() < 0.8


@pytest.mark.parametrize("size", [(641, 480), (640, 481), (100, 100)])
def test_no_fraction_where_a_rest_would_be_left(size: tuple[int, int]) -> None:
    """Or where it would be too small: the pixels are those of the whole image."""
    data = jpeg(picture(*size))
    np.testing.assert_array_equal(decode_image(data, spec(reduced=True)), decode_image(data, spec()))


def test_without_antialiasing_nothing_is_reduced() -> None:
    data = jpeg(picture(640, 480))
    rules: list[dict[str, Any]] = [{"filter": "nearest"}, {"antialias": False}]
    for rule in rules:
        np.testing.assert_array_equal(decode_image(data, spec(**rule, reduced=True)), decode_image(data, spec(**rule)))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 2}])
def test_a_fraction_of_a_cut_jpeg_is_refused(options: dict[str, object]) -> None:
    data = jpeg(picture(640, 480), **options)
    start = data.index(b"\xff\xda")
    assert decode_image(data, spec(reduced=True)).shape == (32, 32, 3)
    for share in (0.1, 0.5, 0.9, 0.98):
        cut = start + int(share * (len(data) - start))
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(UndecodableImage, match="end"):
                decode_image(data[:cut] + end, spec(reduced=True))


def test_float_images_are_not_needed() -> None:
    """The gateway's rule without antialiasing is that of torch's interpolation on floats, rounded."""
    image = picture(61, 44)
    tensor = F.pil_to_tensor(image).float()[None]
    theirs = torch.nn.functional.interpolate(tensor, (32, 32), mode="bilinear")[0].permute(1, 2, 0).round().numpy()
    ours = fitted(image, spec(antialias=False)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("size", [(400_000, 1), (1, 400_000)])
@pytest.mark.parametrize(
    "rule", [{"antialias": False}, {"filter": "bicubic", "antialias": False}, {"arithmetic": "torch"}]
)
def test_a_line_of_pixels_takes_little_memory(size: tuple[int, int], rule: dict[str, Any]) -> None:
    line = Image.new("RGB", size, (10, 20, 30))
    tracemalloc.start()
    try:
        made = fitted(line, spec(resize_to=36, **rule))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (made == (10, 20, 30)).all()
    assert peak < 10_000_000

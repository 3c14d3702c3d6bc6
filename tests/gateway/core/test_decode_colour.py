"""Gamma and ICC profiles, against closed forms; malformed ones are ignored."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from tests.gateway.icc_files import ADOBE, SRGB, cmyk_profile, converted, encoded, grey_profile, profile, rgb_profile
from tests.gateway.png_files import (
    DEPTHS,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    chunk,
    drawn,
    eight_bit,
    palette_of,
    png,
)

SPEC = InputSpec(height=16, width=16)
IMAGE = drawn(RGB, 8, seed=3)
WIDE = rgb_profile(ADOBE, 2.2)
DARK = rgb_profile(SRGB, 1.0)  # the primaries of sRGB, in linear light
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def iccp(data: bytes, *, method: bytes = b"\x00", name: bytes = b"name") -> bytes:
    return chunk(b"iCCP", name + b"\x00" + method + zlib.compress(data))


def displayed(share: np.ndarray, gamma: float) -> np.ndarray:
    """Samples in [0, 1] of a file of `gamma`, for a display of 2.2, of 255."""
    return 255 * share ** (1 / (2.2 * gamma))


def near(data: bytes, wanted: np.ndarray, levels: float) -> None:
    made = decode_image(data, SPEC).astype(float)
    assert np.abs(made - np.broadcast_to(wanted, made.shape)).max() <= levels


def saved(image: np.ndarray, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("gamma", [1.0, 0.55, 0.3, 1.8])
@pytest.mark.parametrize(("colour", "depth"), DEPTHS)
def test_gamma_of_every_depth(colour: int, depth: int, gamma: float) -> None:
    samples, palette = drawn(colour, depth), palette_of(depth) if colour == PALETTE else None
    share = samples / ((1 << depth) - 1) if palette is None else palette[samples[..., 0]] / 255
    alpha: float | np.ndarray = 1.0
    if colour in (GREY_ALPHA, RGB_ALPHA):
        alpha, share = eight_bit(samples, depth)[..., -1:] / 255, share[..., :-1]
    data = png(samples, colour, depth, palette=palette, chunks=[gama(gamma)])
    near(data, displayed(share, gamma) * alpha + 255 * (1 - alpha), 1.1)


def test_gamma_and_the_transparent_colour() -> None:
    for colour, depth in ((GREY, 4), (GREY, 16), (RGB, 8), (RGB, 16)):
        samples = drawn(colour, depth)
        key = samples[7, 7]
        data = png(samples, colour, depth, chunks=[gama(1.0), chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))])
        wanted = np.where((samples == key).all(-1)[..., None], 255, displayed(samples / ((1 << depth) - 1), 1.0))
        near(data, wanted, 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(1 / 2.2)],
        [gama(0.47)],
        [gama(0.44)],  # within 5 % of what the display is made for
        [chunk(b"sRGB", b"\x00"), gama(1.0)],
        [gama(1.0), chunk(b"sRGB", b"\x03")],
        [chunk(b"gAMA", bytes(4))],
        [chunk(b"gAMA", b"\x00\x00\x00\x05")],
        [chunk(b"gAMA", b"\xff" * 4)],
        [chunk(b"gAMA", bytes(3))],
        [chunk(b"cHRM", bytes(32))],
        [chunk(b"cICP", bytes([9, 16, 0, 1]))],
        [chunk(b"sBIT", b"\x05\x05\x05")],
        [iccp(SRGB_PROFILE), gama(1.0)],
        [iccp(SRGB_PROFILE)],
        [iccp(rgb_profile(SRGB, 1.0)[:200])],
        [iccp(grey_profile(1.0))],
        [iccp(WIDE, method=b"\x01")],
        [iccp(WIDE, name=b"")],
        [iccp(WIDE, name=b"n" * 80)],
        [chunk(b"iCCP", b"name\x00\x00" + zlib.compress(WIDE)[:-9])],
        [iccp(WIDE + bytes(5_000_000))],
    ],
)
def test_untagged_or_ignored_is_bit_identical(chunks: list[bytes]) -> None:
    np.testing.assert_array_equal(decode_image(png(IMAGE, RGB, 8, chunks=chunks), SPEC), IMAGE)


def test_profiles_come_before_srgb_and_srgb_before_gamma() -> None:
    wide = np.clip(converted(IMAGE, ADOBE, 2.2), 0, 255)
    for others in ([], [gama(1.0)], [chunk(b"sRGB", b"\x00")], [chunk(b"sRGB", b"\x00"), gama(0.3)]):
        for chunks in ([iccp(WIDE), *others], [*others, iccp(WIDE)]):
            near(png(IMAGE, RGB, 8, chunks=chunks), wide, 2)
    # One that cannot be used takes nothing's place.
    for broken in (iccp(WIDE[:200]), iccp(grey_profile(2.2)), iccp(profile(b"RGB ", {}))):
        near(png(IMAGE, RGB, 8, chunks=[broken, gama(1.0)]), displayed(IMAGE / 255, 1.0), 1)
        np.testing.assert_array_equal(
            decode_image(png(IMAGE, RGB, 8, chunks=[broken, gama(1.0), chunk(b"sRGB", b"\x00")]), SPEC), IMAGE
        )


@pytest.mark.parametrize(("primaries", "gamma"), [(ADOBE, 2.2), (SRGB, 1.0), (SRGB[:, [1, 0, 2]], 1.8)])
@pytest.mark.parametrize(("fmt", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
def test_rgb_profiles(fmt: str, options: dict[str, object], primaries: np.ndarray, gamma: float) -> None:
    icc = rgb_profile(primaries, gamma)
    smooth = np.stack(np.broadcast_arrays(np.arange(16)[:, None] * 17, np.arange(16)[None] * 17, 128), -1)
    plain = decode_image(saved(smooth, fmt, **options), SPEC)
    wanted = np.clip(converted(plain, primaries, gamma), 0, 255)
    assert np.abs(wanted - plain).max() > 20
    near(saved(smooth, fmt, icc_profile=icc, **options), wanted, 2)


def test_profiles_of_other_modes() -> None:
    rgba, grey = drawn(RGB_ALPHA, 8), drawn(GREY, 8)
    alpha = rgba[..., 3:] / 255
    wanted = np.clip(converted(rgba[..., :3], ADOBE, 2.2), 0, 255) * alpha + 255 * (1 - alpha)
    near(png(rgba, RGB_ALPHA, 8, chunks=[iccp(WIDE)]), wanted, 2)
    samples, palette = drawn(PALETTE, 4), palette_of(4)
    shown = np.clip(converted(palette, ADOBE, 2.2), 0, 255)
    shown[0] = 255
    near(
        png(samples, PALETTE, 4, palette=palette, chunks=[chunk(b"tRNS", b"\x00"), iccp(WIDE)]),
        shown[samples[..., 0]],
        2,
    )
    linear = grey_profile(1.0)
    near(png(grey, GREY, 8, chunks=[iccp(linear)]), encoded(grey / 255), 1)
    near(saved(grey[..., 0], "JPEG", quality=100, icc_profile=linear), encoded(grey / 255), 9)
    two = drawn(GREY_ALPHA, 8)
    alpha = two[..., 1:] / 255
    near(png(two, GREY_ALPHA, 8, chunks=[iccp(linear)]), encoded(two[..., :1] / 255) * alpha + 255 * (1 - alpha), 2)
    assert (
        decode_image(png(grey, GREY, 8, chunks=[iccp(linear)]), InputSpec(height=16, width=16, channels=1)).shape[2]
        == 1
    )


@pytest.mark.parametrize("body", [b"", b"\x04", b"\x00\x00"])
def test_an_srgb_chunk_that_is_none_leaves_the_gamma(body: bytes) -> None:
    near(png(IMAGE, RGB, 8, chunks=[chunk(b"sRGB", body), gama(1.0)]), displayed(IMAGE / 255, 1.0), 1)


def test_white_stays_white_and_black_black() -> None:
    for level in (0, 255):
        flat = np.full((16, 16, 3), level)
        for icc in (WIDE, DARK, SRGB_PROFILE):
            near(png(flat, RGB, 8, chunks=[iccp(icc)]), flat, 1)


def test_cmyk_with_and_without_a_profile() -> None:
    """Ink as Adobe stores it, inverted; without a profile by the usual formula, with one as it says."""
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:8, :, 0] = 255
    inks[:, 8:, 3] = 128
    image = Image.fromarray(inks, "CMYK")
    plain, printed = io.BytesIO(), io.BytesIO()
    image.save(plain, "JPEG", quality=100)
    image.save(printed, "JPEG", quality=100, icc_profile=cmyk_profile())
    near(
        plain.getvalue(),
        np.array([[255 - inks[..., 0].astype(int), *[np.full((16, 16), 255)] * 2]])[0].transpose(1, 2, 0)
        * (1 - inks[..., 3:] / 255),
        3,
    )
    lightness = 100 * (1 - inks[..., 3:] / 255)
    light = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    near(printed.getvalue(), encoded(light), 3)


def test_malformed_profiles_change_nothing() -> None:
    plain = decode_image(saved(IMAGE, "JPEG", quality=95), SPEC)
    for icc in (
        b"",
        b"x",
        bytes(128),
        WIDE[:130],
        WIDE[:-40],
        grey_profile(1.0),
        cmyk_profile(),
        profile(b"RGB ", {}),
        profile(b"RGB ", {}, kind=b"link"),
        profile(b"Lab ", {}),
        SRGB_PROFILE,
    ):
        np.testing.assert_array_equal(decode_image(saved(IMAGE, "JPEG", quality=95, icc_profile=icc), SPEC), plain)


@given(st.sampled_from([WIDE, DARK, grey_profile(2.0), cmyk_profile()]), st.data())
def test_damaged_profiles_never_refuse_an_image(icc: bytes, data: st.DataObject) -> None:
    made = bytearray(icc)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(icc) - 1), st.integers(0, 255)), max_size=6)):
        made[at] = value
    for file in (png(IMAGE, RGB, 8, chunks=[iccp(bytes(made))]), saved(IMAGE, "WEBP", icc_profile=bytes(made))):
        assert decode_image(file, SPEC).shape == (16, 16, 3)


def test_parts_of_a_profile_in_a_jpeg() -> None:
    smooth = np.broadcast_to(np.arange(16)[:, None, None] * 16, (16, 16, 3))
    plain, whole = saved(smooth, "JPEG"), saved(smooth, "JPEG", icc_profile=DARK)

    def file(*parts: tuple[int, int, bytes]) -> bytes:
        segments = [b"ICC_PROFILE\x00" + bytes([i, n]) + part for i, n, part in parts]
        return plain[:2] + b"".join(b"\xff\xe2" + struct.pack(">H", len(s) + 2) + s for s in segments) + plain[2:]

    halves = DARK[:200], DARK[200:]
    tagged, untagged = decode_image(whole, SPEC), decode_image(plain, SPEC)
    assert (tagged != untagged).any()
    for data in (
        file((1, 1, DARK)),
        file((1, 2, halves[0]), (2, 2, halves[1])),
        file((2, 2, halves[1]), (1, 2, halves[0])),
    ):
        np.testing.assert_array_equal(decode_image(data, SPEC), tagged)
    for data in (
        file((1, 2, halves[0])),
        file((0, 1, DARK)),
        file((1, 1, DARK), (1, 1, DARK)),
        file((1, 3, halves[0]), (2, 3, halves[1])),
        file((1, 2, halves[0]), (2, 3, halves[1])),
        plain[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\x00" + plain[2:],
    ):
        np.testing.assert_array_equal(decode_image(data, SPEC), untagged)

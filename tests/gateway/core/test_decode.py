from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from gateway.core.decode import Limits, check_content_type, decode_image, is_quick, open_image, to_image, to_pixels
from gateway.core.jpeg_segments import MAX_SCANS, read_jpeg
from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Resize
from gateway.errors import EmptyBody, ImageTooLarge, PalisadeError, UndecodableImage, UnsupportedMediaType
from tests.gateway.tiny import clean_image, encode

SPEC = InputSpec(height=16, width=16)
GREY = InputSpec(height=16, width=16, channels=1)


def picture(height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("fmt", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_at_the_right_size_are_bit_identical(fmt: str, options: dict[str, object]) -> None:
    image = picture()
    np.testing.assert_array_equal(decode_image(encode(image, fmt, **options), SPEC), image)


def test_jpeg_and_lossy_webp_are_close() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 16).astype(np.uint8)[None, :, None], (16, 16, 3)).copy()
    for fmt in ("JPEG", "WEBP"):
        assert np.abs(decode_image(encode(smooth, fmt, quality=95), SPEC).astype(int) - smooth).max() < 24


def many_scans(copies: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan, about 50 bytes, is repeated."""
    data = saved(Image.new("RGB", (side, side), (9, 200, 40)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")) : -2]
    return data[:-2] + last * copies + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """10 MB of them, over 16 million pixels, would keep a worker for half an hour."""
    for copies in (MAX_SCANS, 10_000):
        with pytest.raises(UndecodableImage, match="100 scans"):
            decode_image(many_scans(copies), SPEC)
    assert decode_image(many_scans(50), SPEC).shape == (16, 16, 3)


def test_only_scans_count_as_scans() -> None:
    """Their marker's bytes inside a comment, behind the end or between restarts are something else."""
    data = encode(picture(64, 64), "JPEG", quality=95, restart_marker_blocks=1)
    comment = b"\xff\xda" * 5_000
    assert read_jpeg(data).scans == 1
    assert read_jpeg(saved(Image.new("RGB", (64, 64)), "JPEG", progressive=True)).scans == 10
    segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
    for disguised in (data + comment, data[:2] + segment + data[2:]):
        assert read_jpeg(disguised).scans == 1
        np.testing.assert_array_equal(decode_image(disguised, SPEC), decode_image(data, SPEC))


def test_to_pixels_and_back() -> None:
    image = picture()
    pixels = to_pixels(image)
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == np.float32
    assert pixels[0, 2, 3, 4] == np.float32(image[3, 4, 2]) / np.float32(255)
    np.testing.assert_array_equal(to_image(pixels[0]), image)
    np.testing.assert_array_equal(to_pixels(np.stack([image, image]))[1], pixels[0])
    with pytest.raises(ValueError, match="expected uint8"):
        to_pixels(image.astype(np.float32))


def test_resize_rules() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200
    stretched = decode_image(encode(wide), SPEC)
    cropped = decode_image(encode(wide), InputSpec(height=16, width=16, resize=Resize(rule="center_crop")))
    assert stretched[8, 0, 0] == 0
    # The filter's support reaches over the edge of the crop, as it does when an image is scaled and then cropped.
    assert cropped[:, 2:-2].min() == 200
    expected = np.asarray(Image.fromarray(wide).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(stretched, expected)


def test_extreme_aspect_ratios() -> None:
    for shape in ((1, 3000), (3000, 1), (1, 1)):
        for rule in ("stretch", "center_crop"):
            spec = InputSpec(height=16, width=16, resize=Resize(rule=rule))
            assert decode_image(encode(picture(*shape)), spec).shape == (16, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(picture())
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(saved(stored, exif=exif), SPEC), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_corrupt_exif_is_ignored() -> None:
    image = picture()
    data = saved(Image.fromarray(image), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(decode_image(data, SPEC), image)


def test_colour_modes() -> None:
    grey = picture()[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encode(grey), SPEC), three)
    np.testing.assert_array_equal(decode_image(encode(grey), GREY)[..., 0], grey)
    assert decode_image(encode(picture()), GREY).shape == (16, 16, 1)
    palette = Image.fromarray(three).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    np.testing.assert_array_equal(decode_image(saved(palette), SPEC), np.asarray(palette.convert("RGB")))
    one_bit = Image.fromarray(grey > 127)
    assert set(np.unique(decode_image(saved(one_bit), SPEC))) == {0, 255}
    cmyk = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert decode_image(cmyk, SPEC)[8, 8].tolist() == pytest.approx([255, 0, 0], abs=4)


def test_sixteen_bit_samples_keep_the_high_byte() -> None:
    deep = (np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) | 0x7F
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(deep)), SPEC)[..., 1], deep >> 8)


def test_transparency_is_white() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8, :, 3] = 255
    decoded = decode_image(encode(rgba), SPEC)
    assert decoded[:8].max() == 0
    assert decoded[8:].min() == 255
    transparent = Image.fromarray(np.zeros((16, 16), np.uint8)).convert("P")
    assert decode_image(saved(transparent, transparency=0), SPEC).min() == 255


def test_first_frame_of_animations() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for fmt, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = saved(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data, SPEC)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "data", [b"hello, this is text", b"GIF89a" + bytes(60), b"II*\x00" + bytes(60), b"%!PS-Adobe-3.0", b"<svg/>"]
)
def test_other_formats_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        decode_image(data, SPEC)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_files_are_undecodable(fmt: str) -> None:
    data = encode(picture(64, 64), fmt)
    for size in (12, 30, len(data) // 2, len(data) - 40):
        with pytest.raises((UndecodableImage, UnsupportedMediaType)):
            decode_image(data[:size], SPEC)


def test_empty() -> None:
    with pytest.raises(EmptyBody):
        decode_image(b"", SPEC)


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(5_000, 3_201), (10_000, 5_000), (60_000, 60_000)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    width, height = size
    data = (
        png_bomb(width, height)
        if width * height < 10**8
        else png_bomb(1, 1).replace(struct.pack(">II", 1, 1), struct.pack(">II", width, height))
    )
    with pytest.raises((ImageTooLarge, UndecodableImage)):
        decode_image(data, SPEC)


def test_webp_bombs_are_refused_before_libwebp_sees_them() -> None:
    for body in (
        b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2,
        b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 0x3FFE | 0x3FFE << 14) + bytes(5),
        b"VP8 " + struct.pack("<I", 10) + b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000),
    ):
        with pytest.raises(ImageTooLarge, match="pixels"):
            decode_image(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, SPEC)


@pytest.mark.parametrize(("compression", "bits"), [(1, 8), (2, 4)])
def test_run_lengths_of_a_bmp_are_few_pixels(compression: int, bits: int) -> None:
    def bmp(width: int, height: int) -> bytes:
        palette = bytes(4) + b"\xff" * (4 * 2**bits - 4)
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 2**bits, 0)
        start = 14 + len(head) + len(palette)
        # Each line is begun and left to the decoder to fill.
        runs = b"\x01\x11\x00\x00" * height + b"\x00\x01"
        return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + head + palette + runs

    image = decode_image(bmp(16, 16), SPEC)
    assert (image[:, 0] == 255).all()
    assert not image[:, 1:].any()
    assert open_image(bmp(1000, 1000)).size == (1000, 1000)
    with pytest.raises(ImageTooLarge, match="1000 x 1001 pixels, at most 1000000"):
        open_image(bmp(1000, 1001))


def test_real_webp_headers_are_read_right() -> None:
    for options in ({"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\x00\x00"}):
        data = encode(picture(40, 50), "WEBP", **options)
        assert decode_image(data, SPEC, Limits(max_pixels=2_000)).shape == (16, 16, 3)
        with pytest.raises(ImageTooLarge, match="50 x 40"):
            decode_image(data, SPEC, Limits(max_pixels=1_999))


def test_limit_of_bytes() -> None:
    data = encode(picture())
    with pytest.raises(ImageTooLarge, match="bytes"):
        decode_image(data, SPEC, Limits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("declared", [None, "", "image/png", "IMAGE/JPG; q=1", "application/octet-stream", "image/gif"])
def test_content_types_that_may_be_images(declared: str | None) -> None:
    check_content_type(declared)


@pytest.mark.parametrize("declared", ["text/plain", "application/json", "application/x-www-form-urlencoded", "png"])
def test_content_types_that_are_not(declared: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="not an image"):
        check_content_type(declared)


SEEDS = [encode(picture(24, 24), fmt) for fmt in ("PNG", "JPEG", "WEBP", "BMP")] + [
    saved(Image.fromarray(picture(24, 24)).convert("P")),
    saved(Image.fromarray(picture(24, 24)).convert("RGBA"), "WEBP"),
]


def survives(data: bytes) -> None:
    """Whatever comes: an image of the right shape, or one of our own errors."""
    try:
        image = decode_image(data, SPEC, Limits(max_pixels=1_000_000))
    except PalisadeError as error:
        assert 400 <= error.status < 500
        assert error.detail.isprintable()
    else:
        assert image.shape == (16, 16, 3)
        assert image.dtype == np.uint8


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\x00\x00\x00WEBP", b"BM"]), st.binary())
def test_random_bytes(magic: bytes, tail: bytes) -> None:
    survives(magic + tail)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 200),
)
def test_mutated_images(seed: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(seed[: len(seed) - cut])
    for position, value in changes:
        data[position % len(data)] = value
    survives(bytes(data))


def test_webp_is_built_in() -> None:
    assert features.check("webp")


@pytest.mark.parametrize(
    ("data", "quick"),
    [
        (encode(clean_image()), True),
        (encode(clean_image(), "JPEG"), False),
        (encode(np.zeros((64, 65, 3), np.uint8)), False),
        (encode(clean_image())[:20], False),
        (b"", False),
        (encode(clean_image(), icc_profile=b"profile"), False),
        (encode(clean_image()) + bytes(20_000), False),
    ],
)
def test_only_small_and_simple_files_are_quick(data: bytes, quick: bool) -> None:
    assert is_quick(data) is quick

"""PNG: every depth with transparency, data that end early, chunks that are damaged or too large."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from gateway.errors import UndecodableImage
from tests.gateway.exif_blocks import block, short
from tests.gateway.png_files import (
    CHANNELS,
    DEPTHS,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    SIGNATURE,
    chunk,
    drawn,
    eight_bit,
    header,
    palette_of,
    png,
    raster,
)

SPEC = InputSpec(height=16, width=16)
PLAIN = drawn(RGB, 8)


def expected(samples: np.ndarray, colour: int, depth: int, palette: np.ndarray | None = None) -> np.ndarray:
    """Opaque pixels as RGB; the alpha channel composited on white."""
    if colour == PALETTE:
        assert palette is not None
        return palette[samples[..., 0]].astype(np.uint8)
    pixels = eight_bit(samples, depth)
    if colour in (GREY_ALPHA, RGB_ALPHA):
        alpha = pixels[..., -1:] / 255
        pixels = np.rint(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def near(made: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(made.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), DEPTHS)
def test_every_depth(colour: int, depth: int, interlaced: bool) -> None:
    samples, palette = drawn(colour, depth), palette_of(depth) if colour == PALETTE else None
    data = png(samples, colour, depth, palette=palette, interlaced=interlaced, pieces=5)
    near(decode_image(data, SPEC), expected(samples, colour, depth, palette))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), [(c, d) for c, d in DEPTHS if c in (GREY, RGB)])
def test_the_transparent_colour_is_white(colour: int, depth: int, interlaced: bool) -> None:
    samples = drawn(colour, depth, seed=depth)
    key = samples[3, 4].copy()
    samples[:4, :4] = key
    if depth == 16:
        samples[5, 5] = key ^ 1  # of the same high byte, and yet another colour
    stated = key | (0x100 if depth == 8 else 0)  # bits above the depth are not looked at
    data = png(
        samples, colour, depth, interlaced=interlaced, chunks=[chunk(b"tRNS", struct.pack(f">{len(key)}H", *stated))]
    )
    wanted = expected(samples, colour, depth).copy()
    wanted[(samples == key).all(-1)] = 255
    np.testing.assert_array_equal(decode_image(data, SPEC), wanted)
    assert (samples == key).all(-1).sum() >= 16
    if depth == 16:
        assert (wanted[5, 5] == key[..., : CHANNELS[colour]] >> 8).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_with_alpha(depth: int) -> None:
    samples, palette = drawn(PALETTE, depth), palette_of(depth)
    for alphas in (bytes([0]), bytes([255, 0]), bytes([7, 200]), bytes(np.arange(1 << depth, dtype=np.uint8))):
        alpha = np.full(1 << depth, 255)
        alpha[: len(alphas)] = list(alphas)
        share = alpha[samples[..., 0], None] / 255
        data = png(samples, PALETTE, depth, palette=palette, chunks=[chunk(b"tRNS", alphas)])
        near(decode_image(data, SPEC), np.rint(palette[samples[..., 0]] * share + 255 * (1 - share)))


def test_transparency_that_means_nothing_is_ignored() -> None:
    for colour, depth in DEPTHS:
        samples, palette = drawn(colour, depth), palette_of(depth) if colour == PALETTE else None
        opaque = decode_image(png(samples, colour, depth, palette=palette), SPEC)
        key = struct.pack(f">{CHANNELS[colour]}H", *samples[0, 0])
        for body in (b"", b"\x00", bytes(5), bytes(7), bytes(257)):
            if colour == PALETTE and 0 < len(body) <= 1 << depth:
                continue
            data = png(samples, colour, depth, palette=palette, chunks=[chunk(b"tRNS", body)])
            np.testing.assert_array_equal(decode_image(data, SPEC), opaque)
        late = png(samples, colour, depth, palette=palette, after=[chunk(b"tRNS", key)])
        damaged = png(samples, colour, depth, palette=palette, chunks=[chunk(b"tRNS", key, crc=1)])
        for data in (late, damaged):
            np.testing.assert_array_equal(decode_image(data, SPEC), opaque)


def assembled(
    data: bytes, colour: int = RGB, depth: int = 8, interlaced: bool = False, shape: tuple = (16, 16)
) -> bytes:
    """A PNG whose image data are the zlib stream `data`."""
    head = header(np.zeros((*shape, 1)), colour, depth, interlaced=interlaced)
    palette = chunk(b"PLTE", palette_of(depth).astype(np.uint8).tobytes()) if colour == PALETTE else b""
    return SIGNATURE + head + palette + chunk(b"IDAT", data) + chunk(b"IEND")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), DEPTHS)
@pytest.mark.parametrize("value", [0, 255, 0x5B, 0xA4, None])
def test_streams_that_end_before_the_last_row(colour: int, depth: int, interlaced: bool, value: int | None) -> None:
    """Whatever the colour of the pixels that are there, and of those that are missing."""
    samples = drawn(colour, depth)
    if value is not None:
        samples[:] = value * 257 if depth == 16 else value >> (8 - depth)
    rows = raster(samples, depth, interlaced=interlaced)
    assert decode_image(assembled(zlib.compress(rows), colour, depth, interlaced), SPEC).shape == (16, 16, 3)
    for share in (0.0, 0.5, 0.95):
        with pytest.raises(UndecodableImage, match=r"end before|truncated"):
            decode_image(assembled(zlib.compress(rows[: int(share * len(rows))]), colour, depth, interlaced), SPEC)
    with pytest.raises(UndecodableImage, match=r"end before|truncated"):
        decode_image(assembled(zlib.compress(rows[:-1]), colour, depth, interlaced), SPEC)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (3, 3), (5, 8), (8, 5), (17, 1), (1, 17)])
def test_the_last_pixel_of_any_size(size: tuple[int, int], interlaced: bool) -> None:
    for colour, depth in DEPTHS:
        samples = drawn(colour, depth, height=size[0], width=size[1])
        rows = raster(samples, depth, interlaced=interlaced)
        assert decode_image(assembled(zlib.compress(rows), colour, depth, interlaced, size), SPEC).shape == (16, 16, 3)
        with pytest.raises(UndecodableImage):
            decode_image(assembled(zlib.compress(rows[:-1]), colour, depth, interlaced, size), SPEC)


def test_files_cut_anywhere_before_the_end_of_the_image_data() -> None:
    data = png(PLAIN, RGB, 8, pieces=3)
    whole = decode_image(data, SPEC)
    image_data = len(data) - 12  # the end chunk
    for size in range(8, image_data, 7):
        with pytest.raises(UndecodableImage):
            decode_image(data[:size], SPEC)
    for size in range(image_data, len(data)):
        np.testing.assert_array_equal(decode_image(data[:size], SPEC), whole)
    for end in (b"", b"garbage", chunk(b"IEND", crc=0), chunk(b"IEND", b"more"), bytes(9), data):
        np.testing.assert_array_equal(decode_image(png(PLAIN, RGB, 8, end=end), SPEC), whole)


ANCILLARY = [b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"cHRM", b"iCCP", b"sRGB", b"eXIf", b"bKGD", b"hIST"]
ANCILLARY += [b"sPLT", b"sBIT", b"cICP", b"mDCV", b"acTL", b"fcTL", b"fdAT", b"vpAg", b"abCd", b"zzzz"]
BODIES = [
    b"",
    b"\x00",
    b"key\x00text",
    b"key\x00\x00" + zlib.compress(bytes(3_000_000), 9),
    b"\xff" * 26,
    bytes(100_000),
]
BODIES += [
    b"key\x00\x01x",
    b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + zlib.compress(b"<" * 2_000_000),
    b"exif\x00\xff\xfe",
]


@pytest.mark.parametrize("kind", ANCILLARY)
def test_ancillary_chunks_never_refuse_an_image(kind: bytes) -> None:
    for colour, depth in ((GREY, 1), (RGB, 8), (PALETTE, 4), (RGB_ALPHA, 16)):
        samples, palette = drawn(colour, depth), palette_of(depth) if colour == PALETTE else None
        whole = decode_image(png(samples, colour, depth, palette=palette), SPEC)
        for body in BODIES:
            for made in (chunk(kind, body), chunk(kind, body, crc=12_345)):
                for data in (
                    png(samples, colour, depth, palette=palette, chunks=[made, made]),
                    png(samples, colour, depth, palette=palette, after=[made]),
                ):
                    np.testing.assert_array_equal(decode_image(data, SPEC), whole)


def test_damaged_chunks_that_are_used_are_dropped() -> None:
    turned, gamma = block("<", [short("<", 6)]), struct.pack(">I", 100_000)
    whole = decode_image(png(PLAIN, RGB, 8), SPEC)
    for kind, body in ((b"eXIf", turned), (b"gAMA", gamma)):
        assert (decode_image(png(PLAIN, RGB, 8, chunks=[chunk(kind, body)]), SPEC) != whole).any()
        data = png(PLAIN, RGB, 8, chunks=[chunk(kind, body, crc=0)])
        np.testing.assert_array_equal(decode_image(data, SPEC), whole)
    two = png(PLAIN, RGB, 8, chunks=[chunk(b"gAMA", gamma, crc=0), chunk(b"gAMA", gamma)])
    np.testing.assert_array_equal(
        decode_image(two, SPEC), decode_image(png(PLAIN, RGB, 8, chunks=[chunk(b"gAMA", gamma)]), SPEC)
    )


def split(data: bytes) -> list[bytes]:
    """The signature and the chunks of a file."""
    ends = [0, 8]
    while ends[-1] < len(data):
        ends.append(ends[-1] + 12 + int.from_bytes(data[ends[-1] : ends[-1] + 4], "big"))
    return [data[a:b] for a, b in pairwise(ends)]


def test_critical_chunks_must_be_right() -> None:
    signature, head, palette, *data, end = split(png(drawn(PALETTE, 8), PALETTE, 8, palette=palette_of(8), pieces=3))
    decode_image(b"".join([signature, head, palette, *data, end]), SPEC)
    for wrong in (
        [palette, head, *data],
        [head, *data],  # no palette
        [head, *data, palette],
        [head, palette, palette, *data],
        [head, chunk(b"PLTE"), *data],
        [head, chunk(b"PLTE", bytes(4)), *data],
        [head, chunk(b"PLTE", bytes(771)), *data],
        [head, palette],  # no data
        [head, palette, data[0], chunk(b"tEXt", b"a\x00b"), *data[1:]],  # image data must not be interrupted
        [head, palette, data[1], data[0], data[2]],
        [head, palette, chunk(b"CgBI", bytes(4)), *data],  # unknown and critical
        [head, palette, chunk(b"\x01\x02\x03\x04"), *data],
        [chunk(b"IHDR", head[8:20]), palette, *data],
        [head, head, palette, *data],
        [damaged(head), palette, *data],
        [head, damaged(palette), *data],
        [head, palette, *data[:-1], damaged(data[-1])],
    ):
        with pytest.raises(UndecodableImage):
            decode_image(b"".join([signature, *wrong, end]), SPEC)


def damaged(part: bytes) -> bytes:
    """The chunk with another checksum."""
    return part[:-1] + bytes([part[-1] ^ 1])


@pytest.mark.parametrize(
    "fields",
    [
        (0, 9, 8, 2, 0, 0, 0),
        (9, 0, 8, 2, 0, 0, 0),
        (9, 9, 3, 0, 0, 0, 0),
        (9, 9, 4, 2, 0, 0, 0),
        (9, 9, 8, 1, 0, 0, 0),
        (9, 9, 16, 3, 0, 0, 0),
        (9, 9, 8, 2, 1, 0, 0),
        (9, 9, 8, 2, 0, 1, 0),
        (9, 9, 8, 2, 0, 0, 2),
    ],
)
def test_headers_that_are_none(fields: tuple[int, ...]) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))
    with pytest.raises(UndecodableImage):
        decode_image(SIGNATURE + head + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND"), SPEC)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_samples_beyond_the_palette_are_black(depth: int) -> None:
    samples, palette = drawn(PALETTE, depth), palette_of(depth)[:3]
    padded = np.zeros((1 << depth, 3), int)
    padded[:3] = palette
    made = decode_image(png(samples, PALETTE, depth, palette=palette), SPEC)
    np.testing.assert_array_equal(made, padded[samples[..., 0]])
    clear = png(samples, PALETTE, depth, palette=palette, chunks=[chunk(b"tRNS", bytes([0, 0, 0]))])
    padded[:3] = 255
    np.testing.assert_array_equal(decode_image(clear, SPEC), padded[samples[..., 0]])


def test_a_palette_longer_than_the_depth_is_cut() -> None:
    samples = drawn(PALETTE, 2)
    made = decode_image(png(samples, PALETTE, 2, palette=palette_of(8)), SPEC)
    np.testing.assert_array_equal(made, palette_of(8)[samples[..., 0]])


def test_a_suggested_palette_is_ignored() -> None:
    whole = decode_image(png(PLAIN, RGB, 8), SPEC)
    for body in (b"", bytes(4), bytes(900), bytes(30)):
        np.testing.assert_array_equal(decode_image(png(PLAIN, RGB, 8, chunks=[chunk(b"PLTE", body)]), SPEC), whole)


def test_the_first_frame_of_an_animation_without_reading_the_rest() -> None:
    frame = struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 1, 10, 0, 0)
    chunks = [chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", frame)]
    after = [chunk(b"fcTL", b"\x00\x00\x00\x01" + frame[4:]), chunk(b"fdAT", b"\x00\x00\x00\x02" + b"broken")]
    whole = decode_image(png(PLAIN, RGB, 8), SPEC)
    for data in (png(PLAIN, RGB, 8, chunks=chunks, after=after), png(PLAIN, RGB, 8, chunks=chunks[:1], after=after)):
        np.testing.assert_array_equal(decode_image(data, SPEC), whole)


@given(st.lists(st.tuples(st.sampled_from(ANCILLARY), st.binary(max_size=60), st.booleans()), max_size=6))
def test_any_ancillary_chunks(parts: list[tuple[bytes, bytes, bool]]) -> None:
    kinds = [
        chunk(kind, body, crc=None if sound else 7) for kind, body, sound in parts if kind not in (b"gAMA", b"eXIf")
    ]
    made = decode_image(png(PLAIN, RGB, 8, chunks=kinds, after=kinds), SPEC)
    np.testing.assert_array_equal(made, decode_image(png(PLAIN, RGB, 8), SPEC))

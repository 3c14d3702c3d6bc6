"""The orientation is applied wherever it can be read, whatever else an EXIF block holds."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from gateway.core.decode import decode_image, open_image
from gateway.core.manifest import InputSpec
from gateway.core.orientation import orientation, without_orientation
from tests.gateway.exif_blocks import ORIENTATION, SIZES, block, entry, short
from tests.gateway.png_files import RGB, chunk, png

SPEC = InputSpec(height=16, width=16)
STORED = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
TURNED = np.rot90(STORED, -1)  # orientation 6: the stored image, turned by 90 degrees clockwise
TAGS = sorted({tag.value for tag in ExifTags.Base} | {tag.value for tag in ExifTags.GPS})
VALUES = [b"\x00" * 4, b"\xff" * 4, b"\x80\x00\x00\x00", b"\xf6\xff\xff\xff", b"6\x00\x00\x00", b"\x10\x00\x00\x00"]


def jpeg(exif: bytes, image: np.ndarray = STORED) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, exif=b"Exif\x00\x00" + exif)
    return buffer.getvalue()


def webp(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(STORED).save(buffer, "WEBP", lossless=True, exif=exif)
    return buffer.getvalue()


def png_of(*chunks: bytes, after: tuple[bytes, ...] = ()) -> bytes:
    return png(STORED.astype(int), RGB, 8, chunks=chunks, after=after)


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_tag_in_every_type_beside_it(order: str) -> None:
    for tag in TAGS:
        if tag == ORIENTATION:
            continue
        for kind in [0, *SIZES, 14, 255, 65_535]:
            for value in VALUES:
                other = entry(order, tag, kind, 3, value)
                around = [other, short(order, 6)] if tag < ORIENTATION else [short(order, 6), other]
                assert orientation(block(order, around)) == 6


@given(st.sampled_from("<>"), st.lists(st.binary(min_size=12, max_size=12), max_size=12), st.data())
def test_any_entries_around_it(order: str, others: list[bytes], data: st.DataObject) -> None:
    others = [other for other in others if struct.unpack_from(order + "H", other)[0] != ORIENTATION]
    at = data.draw(st.integers(0, len(others)))
    assert orientation(block(order, [*others[:at], short(order, 8), *others[at:]])) == 8


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\x00", b"MM\x00*", b"II+\x00", b"Exif\x00\x00MM\x00*"]))
def test_any_bytes_are_a_block_without_a_crash(tail: bytes, head: bytes) -> None:
    assert 1 <= orientation(head + tail) <= 8
    assert orientation(without_orientation(head + tail)) == 1 or head.startswith(b"Exif")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "code"),
    [(1, "B"), (3, "H"), (4, "I"), (6, "b"), (8, "h"), (9, "i"), (11, "f"), (5, "II"), (10, "ii"), (12, "d")],
)
def test_numeric_types_hold_it(order: str, kind: int, code: str) -> None:
    numbers = (3, 1) if len(code) == 2 else (3,)
    value = struct.pack(order + code, *numbers)
    held, tail = (value, b"") if len(value) <= 4 else (struct.pack(order + "I", 26), value)
    made = block(order, [entry(order, ORIENTATION, kind, 1, held)], tail=tail)
    assert orientation(made) == 3
    assert orientation(without_orientation(made)) == 1


def test_what_is_no_orientation_is_none() -> None:
    for value in (0, 9, 255, 65_535):
        assert orientation(block("<", [short("<", value)])) == 1
    for kind in (2, 7, 13, 99):  # text, bytes, an offset, no type
        assert orientation(block("<", [entry("<", ORIENTATION, kind, 4, b"\x06\x00\x00\x00")])) == 1
    assert orientation(block("<", [entry("<", ORIENTATION, 3, 0, b"\x06\x00")])) == 1
    assert orientation(block("<", [entry("<", ORIENTATION, 11, 1, struct.pack("<f", 5.5))])) == 1
    assert orientation(block("<", [entry("<", ORIENTATION, 11, 1, struct.pack("<f", float("nan")))])) == 1
    assert orientation(block("<", [entry("<", ORIENTATION, 10, 1, struct.pack("<I", 26))], tail=bytes(8))) == 1


def test_layouts_of_a_block() -> None:
    entries = [short(">", 6)]
    assert orientation(block(">", entries, start=300)) == 6
    assert orientation(block(">", entries, count=9_999)) == 6  # more entries than there are bytes
    assert orientation(block(">", entries)[:22]) == 6  # ends with the entry
    assert orientation(block(">", entries)[:19]) == 1
    assert orientation(b"Exif\x00\x00" * 2 + block(">", entries)) == 6
    assert orientation(block(">", [short(">", 0), short(">", 6)])) == 6  # the first that is one
    big = b"MM\x00+" + struct.pack(">HHQQHHQQ", 8, 0, 16, 1, ORIENTATION, 3, 1, 6 << 48)
    assert orientation(big) == 6
    assert orientation(without_orientation(big)) == 1
    # Only the first directory is the image's: the second is its thumbnail's.
    second = struct.pack("<H", 1) + short("<", 6)
    first = block("<", [entry("<", 0x0100, 3, 1, b"\x01\x00")])
    assert orientation(first[:-4] + struct.pack("<I", len(first)) + second) == 1


HOSTILE = [
    entry("<", 0x011A, 10, 1, struct.pack("<I", 60)),  # XResolution as a signed fraction
    entry("<", 0x011A, 2, 1, b"\x00"),  # as an empty text
    entry("<", 0x8825, 4, 1, struct.pack("<i", -10)),  # a GPS directory at -10
    entry("<", 0x8825, 3, 4, struct.pack("<I", 8)),
    entry("<", 0x8769, 4, 1, struct.pack("<I", 8)),  # an EXIF directory that is this one
    entry("<", 0x9286, 7, 0xFFFFFFFF, struct.pack("<I", 0)),  # a comment of 4 GB
    entry("<", 0x014A, 12, 3, struct.pack("<I", 4_000_000_000)),
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_formats_apply_it_beside_a_hostile_tag(hostile: bytes) -> None:
    exif = block("<", sorted([hostile, short("<", 6)]), tail=b"\xff\xff\xff\xf6\x00\x00\x00\x01" * 9)
    assert orientation(exif) == 6
    np.testing.assert_array_equal(decode_image(png_of(chunk(b"eXIf", exif)), SPEC), TURNED)
    np.testing.assert_array_equal(decode_image(webp(exif), SPEC), TURNED)
    plain = decode_image(jpeg(b""), SPEC)
    np.testing.assert_array_equal(decode_image(jpeg(exif), SPEC), np.rot90(plain, -1))


def test_size_of_a_turned_image() -> None:
    picture = open_image(jpeg(block("<", [short("<", 6)]), STORED[:9]))
    assert (picture.size, picture.upright_size) == ((16, 9), (9, 16))


def test_only_exif_before_the_image_data_counts() -> None:
    turned = chunk(b"eXIf", block("<", [short("<", 6)]))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    profile = b"\nexif\n      26\n" + block("<", [short("<", 6)]).hex().encode() + b"\n"
    for data in (
        png_of(after=(turned,)),
        png_of(chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + xmp)),
        png_of(chunk(b"tEXt", b"Raw profile type exif\x00" + profile)),
        png_of(turned[:-1] + b"\x00"),  # damaged
    ):
        np.testing.assert_array_equal(decode_image(data, SPEC), STORED)
    plain = jpeg(b"")
    segment = b"http://ns.adobe.com/xap/1.0/\x00" + xmp
    late = b"Exif\x00\x00" + block("<", [short("<", 6)])
    for data in (
        plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:],
        plain + b"\xff\xe1" + struct.pack(">H", len(late) + 2) + late,
    ):
        np.testing.assert_array_equal(decode_image(data, SPEC), decode_image(plain, SPEC))
    # The first of two is the image's.
    both = png_of(turned, chunk(b"eXIf", block("<", [short("<", 3)])))
    np.testing.assert_array_equal(decode_image(both, SPEC), TURNED)

"""JPEG: segments that say nothing of the pixels, and data that end early."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from gateway.errors import ImageTooLarge, UndecodableImage

SPEC = InputSpec(height=48, width=40)
NOISE = np.random.default_rng(2).integers(0, 256, (48, 40, 3), dtype=np.uint8)
BASELINE = [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 2}, {"quality": 20}]


def saved(image: np.ndarray | Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body


REMARKS = [b"", b"\x00", b"JFIF\x00", b"JFIF\x00\x01", b"Adobe", b"Adobe\x00", b"ICC_PROFILE\x00", b"Exif\x00\x00"]
REMARKS += [b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"MPF\x00", b"MPF\x00II*\x00\x08\x00\x00\x00\x01\x00", b"FPXR\x00"]
REMARKS += [
    b"Photoshop 3.0\x008BIM",
    b"Photoshop 3.0\x008BIM\x03\xed",
    b"Photoshop 3.0\x008BIM\x03\xed\x00\x00\x00\x00\x00\x02",
]
REMARKS += [b"http://ns.adobe.com/xap/1.0/\x00\xff\xfe", b"\xff\xd8\xff\xda", bytes(65_000)]


@pytest.mark.parametrize("kind", [*range(0xE0, 0xF0), 0xFE])
def test_remarks_never_refuse_an_image(kind: int) -> None:
    for options in ({}, {"progressive": True}):
        plain = saved(NOISE, **options)
        whole = decode_image(plain, SPEC)
        for body in REMARKS:
            data = plain[:2] + segment(kind, body) * 2 + plain[2:]
            np.testing.assert_array_equal(decode_image(data, SPEC), whole)


@given(
    st.lists(
        st.tuples(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.sampled_from(REMARKS), st.binary(max_size=30)),
        max_size=5,
    )
)
def test_any_remarks(parts: list[tuple[int, bytes, bytes]]) -> None:
    plain = saved(NOISE)
    kinds = b"".join(
        segment(kind, head + tail) for kind, head, tail in parts if b"Adobe" not in head and b"Exif" not in head
    )
    np.testing.assert_array_equal(decode_image(plain[:2] + kinds + plain[2:], SPEC), decode_image(plain, SPEC))


def test_the_colour_model_is_still_chosen_by_its_markers() -> None:
    red = np.zeros((48, 40, 3), np.uint8)
    red[..., 0] = 255
    for image in (saved(red), saved(red, keep_rgb=True)):
        assert np.abs(decode_image(image, SPEC).astype(int) - red).max() < 6
    adobe = segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00\x00")  # transform 0: the components are red, green, blue
    plain = saved(red)
    jfif = plain[2 : 4 + int.from_bytes(plain[4:6], "big")]
    assert (decode_image(plain[:2] + adobe + plain[2 + len(jfif) :], SPEC) != decode_image(plain, SPEC)).any()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [*BASELINE, {"progressive": True}])
def test_files_cut_anywhere(options: dict[str, object], mode: str) -> None:
    data = saved(Image.fromarray(NOISE).convert(mode), **options)
    for size in [*range(3, len(data), 11), len(data) - 2, len(data) - 1]:
        with pytest.raises(UndecodableImage):
            decode_image(data[:size], SPEC)


@pytest.mark.parametrize("fill", ["noise", "black", "white", "mark"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", BASELINE)
def test_scans_that_end_early(options: dict[str, object], mode: str, fill: str) -> None:
    """With an end marker behind what is left, at every place but within the last blocks."""
    flat = {"black": 0, "white": 255, "mark": 0x5B}
    image = Image.fromarray(NOISE if fill == "noise" else np.full_like(NOISE, flat[fill])).convert(mode)
    data = saved(image, **options)
    assert decode_image(data, SPEC).shape == (48, 40, 3)
    start = data.index(b"\xff\xda")
    start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    for share in (0.0, 0.2, 0.5, 0.8):
        cut = start + int(share * (len(data) - 2 - start))
        for other in (b"", segment(0xFE, b"comment"), segment(0xDD, b"\x00\x00"), segment(0xC4, b""), b"\xff\x01"):
            with pytest.raises(UndecodableImage, match="end"):
                decode_image(data[:cut] + other + b"\xff\xd9", SPEC)


def scans(data: bytes) -> list[bytes]:
    """What is before the first scan, and each scan with the tables before it."""
    found, at = [], data.index(b"\xff\xda")
    head = data[: data.rindex(b"\xff\xc4", 0, at)] if b"\xff\xc4" in data[:at] else data[:at]
    rest = data[len(head) : -2]
    while rest:
        first = rest.index(b"\xff\xda")
        tables, scan = rest.find(b"\xff\xc4", first), rest.find(b"\xff\xda", first + 2)
        end = min((i for i in (tables, scan) if i > 0), default=len(rest))
        found.append(rest[:end])
        rest = rest[end:]
    return [head, *found]


def test_progressive_files_that_lack_scans() -> None:
    head, *parts = scans(saved(NOISE, progressive=True))
    assert len(parts) == 10
    decode_image(b"".join([head, *parts]) + b"\xff\xd9", SPEC)
    for count in range(10):
        with pytest.raises(UndecodableImage):
            decode_image(b"".join([head, *parts[:count]]) + b"\xff\xd9", SPEC)


def test_a_damaged_scan_is_decoded_as_far_as_it_goes() -> None:
    """JPEG has no checksum: bytes that are still codes cannot be known to be wrong ones."""
    data = bytearray(saved(NOISE))
    data[len(data) - 200] ^= 0x10
    made = decode_image(bytes(data), SPEC)
    np.testing.assert_array_equal(made[:8], decode_image(saved(NOISE), SPEC)[:8])


def test_hierarchies_and_second_frames_are_refused() -> None:
    """Their sizes would come after the one that was checked."""
    data = saved(NOISE)
    at = data.index(b"\xff\xc0")
    size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    frame = bytearray(data[at : at + size])
    frame[5:9] = struct.pack(">HH", 65_500, 65_500)
    for kind in (0xC0, 0xC2, 0xDE):
        frame[1] = kind
        for place in (at, at + size):
            with pytest.raises((UndecodableImage, ImageTooLarge)):
                decode_image(data[:place] + bytes(frame) + data[place:], SPEC)
    with pytest.raises(ImageTooLarge):
        decode_image(data[:at] + b"\xff\xc0" + bytes(frame[2:]) + data[at + size :], SPEC)


def test_what_follows_the_end_is_not_read() -> None:
    data = saved(NOISE)
    whole = decode_image(data, SPEC)
    for tail in (b"\x00" * 9, data, b"\xff\xda", b"\xff\xe1\x00\x10"):
        np.testing.assert_array_equal(decode_image(data + tail, SPEC), whole)


@pytest.mark.parametrize(
    ("fmt", "options"),
    [("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {})],
)
def test_other_formats_cut_anywhere(fmt: str, options: dict[str, object]) -> None:
    for mode in ("RGB", "RGBA") if fmt == "WEBP" else ("RGB", "L", "P", "1"):
        buffer = io.BytesIO()
        Image.fromarray(NOISE).convert(mode).save(buffer, fmt, **options)
        data = buffer.getvalue()
        assert decode_image(data, SPEC).shape == (48, 40, 3)
        for size in [*range(16, len(data) - 4, 13), len(data) - 4]:  # a BMP's rows are padded by up to 3 bytes
            with pytest.raises(UndecodableImage):
                decode_image(data[:size], SPEC)

"""Bytes of an untrusted image -> pixels of the network's size, the same way in serving and in calibration.

Only four Pillow decoders are ever reached, chosen by the first bytes and never by name or header; width and height are
checked before any pixel is decoded. What a PNG or JPEG file holds beside its pixels is read by `png_chunks`,
`jpeg_segments` and `orientation`, never by Pillow, so that no image is refused for its metadata. The rules are those of
docs/api.md, "Images".
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, WebPImagePlugin

from gateway.core.colour_profiles import to_srgb
from gateway.core.completeness import load_jpeg
from gateway.core.jpeg_segments import read_jpeg
from gateway.core.manifest import InputSpec
from gateway.core.orientation import orientation, swaps_sides, upright
from gateway.core.png_chunks import SIGNATURE, read_png
from gateway.core.png_pixels import pixels_of
from gateway.core.resizing import fitted, wanted_size
from gateway.errors import EmptyBody, ImageTooLarge, UndecodableImage, UnsupportedMediaType

FORMATS = "PNG, JPEG, WebP or BMP"
_QUICK_BYTES = 16_384
_QUICK_PIXELS = 64 * 64
# Pillow decodes run lengths pixel by pixel in Python, however few bytes they are: a tenth of a second for so many.
_RUN_LENGTH_PIXELS = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What an upload may cost: bytes as received, and pixels as its header declares them."""

    max_bytes: int = 10_000_000
    max_pixels: int = 16_000_000


def check_content_type(declared: str | None) -> None:
    """Raise `UnsupportedMediaType` for a declared type that no image has; among images the content decides."""
    media_type = (declared or "").partition(";")[0].strip().lower()
    if media_type and media_type != "application/octet-stream" and not media_type.startswith("image/"):
        raise UnsupportedMediaType(
            f"Content-Type {media_type[:80]!r} is not an image: send {FORMATS} as image/*, application/octet-stream "
            "or without a type, or as the file field 'image' of multipart/form-data"
        )


def recognized(head: bytes) -> bool:
    """Whether a file that begins with `head` (16 bytes are enough) is of a format that is decoded."""
    try:
        _sniff(head)
    except UnsupportedMediaType:
        return False
    return True


@dataclass(frozen=True)
class Picture:
    """A file whose header is read: its size as stored, what it states about its pixels, and how to decode them.

    `load` takes the (width, height) as stored that is enough: a JPEG is then decoded at a fraction of its size.
    """

    size: tuple[int, int]
    load: Callable[[tuple[int, int] | None], Image.Image]
    orientation: int = 1
    profile: bytes | None = None

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) as the image is to be seen."""
        width, height = self.size
        return (height, width) if swaps_sides(self.orientation) else (width, height)

    def fitted(self, spec: InputSpec) -> np.ndarray:
        """Decode to uint8 (H, W, C) of `spec`: in sRGB, on white, upright, resized, in this order."""
        enough = wanted_size(self.upright_size, spec)
        if enough is not None and swaps_sides(self.orientation):
            enough = enough[::-1]
        image = _opaque(to_srgb(_eight_bit(self.load(enough)), self.profile), spec.channels)
        return fitted(upright(image, self.orientation), spec)


def open_image(data: bytes, limits: Limits = Limits()) -> Picture:
    """Read the header of a file within `limits`; raises as `decode_image` does."""
    if not data:
        raise EmptyBody("the request has no image in it")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"{len(data)} bytes, at most {limits.max_bytes} are accepted")
    opener = _sniff(data)
    with _faults_of_the_sender():
        return opener(data, limits)


def decode_image(data: bytes, spec: InputSpec, limits: Limits = Limits()) -> np.ndarray:
    """Decode the first frame, upright, opaque and in sRGB, to uint8 (H, W, C) at the size of `spec`.

    EXIF orientation, ICC profiles and a PNG's gamma are applied, transparency is composited on white, 16-bit samples
    keep their high byte. Raises `EmptyBody`, `ImageTooLarge` (bytes or pixels), `UnsupportedMediaType` (not one of four
    formats) or `UndecodableImage` (truncated or corrupt).
    """
    picture = open_image(data, limits)
    with _faults_of_the_sender():
        return np.ascontiguousarray(picture.fitted(spec))


def is_quick(data: bytes) -> bool:
    """Whether decoding an upload takes no longer than handing it to another thread: a small PNG without a profile.

    What it takes is bounded by the pixels of its header, unlike that of a JPEG in many scans, or of a profile, which
    may unpack to megabytes.
    """
    if not 33 <= len(data) <= _QUICK_BYTES or not data.startswith(SIGNATURE) or b"iCCP" in data:
        return False
    width, height = struct.unpack_from(">II", data, 16)
    return bool(width * height <= _QUICK_PIXELS)


@contextmanager
def _faults_of_the_sender() -> Iterator[None]:
    try:
        yield
    except (ImageTooLarge, UndecodableImage):
        raise
    except Exception as error:  # noqa: BLE001  # decoders of hostile bytes raise nearly anything, all of it the sender's
        raise UndecodableImage(f"truncated or corrupt image: {_reason(error)}") from None


def to_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 (H, W, C) or (N, H, W, C) -> float32 (N, C, H, W) in [0, 1]."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"expected uint8 (H, W, C) or (N, H, W, C), got {images.dtype} {images.shape}")
    batch = images[None] if images.ndim == 3 else images
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255.0)


def to_image(pixels: np.ndarray) -> np.ndarray:
    """float32 (C, H, W) in [0, 1] -> uint8 (H, W, C), rounded: the inverse of `to_pixels` for one image."""
    return np.asarray(np.rint(np.clip(pixels, 0.0, 1.0).transpose(1, 2, 0) * 255.0).astype(np.uint8))


def _sniff(data: bytes) -> Callable[[bytes, Limits], Picture]:
    if data.startswith(SIGNATURE):
        return _png
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    if data.startswith(b"BM"):
        return _bmp
    raise UnsupportedMediaType(f"the content is not {FORMATS}")


def _png(data: bytes, limits: Limits) -> Picture:
    png = read_png(data)
    _check_pixels((png.width, png.height), limits)
    return Picture((png.width, png.height), lambda _enough: pixels_of(png), orientation(png.exif), png.profile)


def _jpeg(data: bytes, limits: Limits) -> Picture:
    jpeg = read_jpeg(data)
    _check_pixels(jpeg.size, limits)
    return Picture(jpeg.size, lambda enough: load_jpeg(jpeg, enough), orientation(jpeg.exif), jpeg.profile)


def _webp(data: bytes, limits: Limits) -> Picture:
    # libwebp allocates its canvas as it opens a file, so the size is read before.
    _check_pixels(_webp_size(data), limits)
    return described(WebPImagePlugin.WebPImageFile(io.BytesIO(data)), limits)


def _bmp(data: bytes, limits: Limits) -> Picture:
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    in_runs = image.info.get("compression") in (image.COMPRESSIONS["RLE8"], image.COMPRESSIONS["RLE4"])
    if in_runs and image.width * image.height > _RUN_LENGTH_PIXELS:
        raise ImageTooLarge(
            f"{image.width} x {image.height} pixels, at most {_RUN_LENGTH_PIXELS} are accepted of a BMP in run lengths"
        )
    return described(image, limits)


def described(image: ImageFile.ImageFile, limits: Limits) -> Picture:
    """An image that Pillow has opened, with the orientation and the profile that it has found."""
    _check_pixels(image.size, limits)

    def load(_enough: tuple[int, int] | None) -> Image.Image:
        image.load()
        return image

    return Picture(image.size, load, orientation(image.info.get("exif", b"")), image.info.get("icc_profile"))


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UndecodableImage(f"image of {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"{width} x {height} pixels, at most {limits.max_pixels} are accepted")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas size in a WebP header (RFC 9649, sections 2.5 to 2.7): extended, lossless or lossy."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = int.from_bytes(data[24:27], "little"), int.from_bytes(data[27:30], "little")
        return width + 1, height + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _eight_bit(image: Image.Image) -> Image.Image:
    """Samples of 16 bits by their high byte."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image.convert("I")), 0, 65_535) // 256).astype(np.uint8))


def _opaque(image: Image.Image, channels: int) -> Image.Image:
    """RGB or grey, transparency on white."""
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colour)
    return image.convert("RGB" if channels == 3 else "L")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return text if text.isprintable() and text else type(error).__name__

"""Bytes of an untrusted image -> pixels of the network's size, the same way in serving and in calibration.

Only four Pillow decoders are ever reached, chosen by the first bytes and never by name or header; width and height are
checked before any pixel is decoded.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from gateway.core.manifest import InputSpec, Resize
from gateway.errors import EmptyBody, ImageTooLarge, UndecodableImage, UnsupportedMediaType

FORMATS = "PNG, JPEG, WebP or BMP"
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


# An ordinary progressive JPEG has about ten scans; each costs a pass over the whole image, however few its bytes.
MAX_SCANS = 100
# The next marker that entropy-coded data can't hold: not a stuffed zero, a restart marker or a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class Limits:
    """What an upload may cost: bytes as received, and pixels as its header declares them."""

    max_bytes: int = 10_000_000
    max_pixels: int = 16_000_000


def check_content_type(declared: str | None) -> None:
    """Refuse a declared type that no image has; the content decides among images (`UnsupportedMediaType`)."""
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


def decode_image(data: bytes, spec: InputSpec, limits: Limits = Limits()) -> np.ndarray:
    """Decode the first frame, upright and opaque, to uint8 (H, W, C) at the size of `spec`.

    EXIF orientation is applied, transparency is composited on white, 16-bit samples keep their high byte. Raises
    `EmptyBody`, `ImageTooLarge` (bytes or pixels), `UnsupportedMediaType` (not one of four formats) or
    `UndecodableImage` (truncated or corrupt).
    """
    if not data:
        raise EmptyBody("the request has no image in it")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"{len(data)} bytes, at most {limits.max_bytes} are accepted")
    opener = _sniff(data)
    try:
        if opener is WebPImagePlugin.WebPImageFile:
            # libwebp allocates its canvas as it opens a file, so the size is read before.
            _check_pixels(_webp_size(data), limits)
        elif opener is JpegImagePlugin.JpegImageFile and _scans(data) > MAX_SCANS:
            raise UndecodableImage(f"JPEG of more than {MAX_SCANS} scans")
        with opener(io.BytesIO(data)) as image:
            _check_pixels(image.size, limits)
            image.load()
            pixels = np.asarray(_fit(_opaque(_upright(image), spec.channels), spec))
    except (ImageTooLarge, UndecodableImage):
        raise
    except Exception as error:  # noqa: BLE001  # decoders of hostile bytes raise nearly anything, all of it the sender's
        raise UndecodableImage(f"truncated or corrupt image: {_reason(error)}") from None
    return np.ascontiguousarray(pixels.reshape(spec.height, spec.width, spec.channels))


def to_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 (H, W, C) or (N, H, W, C) -> float32 (N, C, H, W) in [0, 1]."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"expected uint8 (H, W, C) or (N, H, W, C), got {images.dtype} {images.shape}")
    batch = images[None] if images.ndim == 3 else images
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255.0)


def to_image(pixels: np.ndarray) -> np.ndarray:
    """float32 (C, H, W) in [0, 1] -> uint8 (H, W, C), rounded: the inverse of `to_pixels` for one image."""
    return np.asarray(np.rint(np.clip(pixels, 0.0, 1.0).transpose(1, 2, 0) * 255.0).astype(np.uint8))


def _sniff(data: bytes) -> type[ImageFile.ImageFile]:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    raise UnsupportedMediaType(f"the content is not {FORMATS}")


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


def _scans(data: bytes) -> int:
    """Scans of a JPEG (ITU-T T.81, B.1), counted up to one more than `MAX_SCANS`."""
    count, position = 0, 2
    while count <= MAX_SCANS and (marker := _NEXT_MARKER.search(data, position)):
        kind, position = data[marker.end() - 1], marker.end()
        if kind == 0xD9:  # the end; what follows is not decoded
            break
        if kind not in (0x01, 0xD8):  # all others have a length, which counts itself
            position += int.from_bytes(data[position : position + 2], "big")
        count += kind == 0xDA
    return count


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  # corrupt EXIF says nothing about the pixels, which are decoded next
        return image


def _opaque(image: Image.Image, channels: int) -> Image.Image:
    """8-bit RGB or grey; transparency on white, 16-bit samples by their high byte."""
    if image.mode.startswith("I"):
        samples = np.asarray(image.convert("I"))
        image = Image.fromarray((np.clip(samples, 0, 65_535) // 256).astype(np.uint8))
    elif image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, colour)
    return image.convert("RGB" if channels == 3 else "L")


def _fit(image: Image.Image, spec: InputSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if image.size == size:
        return image
    return _resized(image, size, spec.resize)


def _resized(image: Image.Image, size: tuple[int, int], resize: Resize) -> Image.Image:
    resample = _FILTERS[resize.filter]
    if resize.rule == "center_crop":
        return ImageOps.fit(image, size, resample)
    return image.resize(size, resample)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return text if text.isprintable() and text else type(error).__name__

"""Colours of tagged images -> sRGB: ICC profiles by littleCMS, a PNG's gamma by a table."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageCms

# The exponent of displays for which untagged images are made, and how far a file's may be off and still mean the same:
# libpng's PNG_GAMMA_sRGB and PNG_GAMMA_THRESHOLD.
_DISPLAY = 2.2
_THRESHOLD = 0.05
# A profile is a few hundred bytes to two megabytes; more is ignored.
MAX_PROFILE = 4_000_000
_CLASSES = ("scnr", "mntr", "prtr", "spac")
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Profile:
    """A profile that can be read; `apply` (to RGB) is None where no colour changes by more than 1 of 255."""

    apply: Callable[[Image.Image], Image.Image] | None


def profile_of(profile: bytes | None, mode: str) -> Profile | None:
    """The profile for samples of `mode` (L, RGB or CMYK); None if absent, malformed or of another colour space."""
    return _loaded(profile, mode) if profile and len(profile) <= MAX_PROFILE else None


def base_mode(image: Image.Image) -> str:
    """The mode of an image's colours alone: L, RGB or CMYK."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in sRGB, as RGB or RGBA; as it is, if it has no profile that can be used.

    The intent is perceptual, on 8-bit samples, with the alpha channel untouched.
    """
    found = profile_of(profile, base_mode(image)) if profile else None
    if found is None or found.apply is None:
        return image
    alpha = None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA") if base_mode(image) == "RGB" else image.convert("LA")
        alpha = image.getchannel("A")
    made = found.apply(image.convert(base_mode(image)))
    if alpha is not None:
        made.putalpha(alpha)
    return made


def corrects(gamma: float | None) -> bool:
    """Whether samples of this exponent look different from what the display is made for."""
    return gamma is not None and abs(gamma * _DISPLAY - 1) > _THRESHOLD


def gamma_table(gamma: float, levels: int) -> np.ndarray:
    """uint8 (levels,): samples of `levels` steps, encoded with the exponent `gamma`, for a display of 2.2."""
    light = np.linspace(0.0, 1.0, levels)
    return np.rint(light ** (1 / (gamma * _DISPLAY)) * 255).astype(np.uint8)


# Threads share a transform: littleCMS keeps no state between calls of it.
@lru_cache(maxsize=8)
def _loaded(profile: bytes, mode: str) -> Profile | None:
    probe = _probe(mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.device_class not in _CLASSES:
            return None
        # Greys are few, and so exact: littleCMS would interpolate between some of them.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.ImageCmsTransform(source, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags=flags)
        shown = np.asarray(transform.apply(probe))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None  # a malformed profile is ignored: the samples count as sRGB
    if mode != "CMYK" and np.abs(shown.astype(int) - np.asarray(probe.convert("RGB"), int)).max() <= 1:
        return Profile(None)
    return Profile(partial(_looked_up, table=shown[0]) if mode == "L" else transform.apply)


def _looked_up(image: Image.Image, *, table: np.ndarray) -> Image.Image:
    return Image.fromarray(table[np.asarray(image)])


def _probe(mode: str) -> Image.Image:
    """Every grey, or a lattice of colours with a ramp of greys; one row."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    if mode == "L":
        return Image.fromarray(ramp)
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(*[steps] * 3), -1).reshape(1, -1, 3)
    return Image.fromarray(np.concatenate([lattice, np.stack([ramp] * 3, -1)], 1)).convert(mode)

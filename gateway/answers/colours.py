"""A perceptually uniform colour scale for maps in [0, 1], built in OKLab (Ottosson 2020).

Lightness rises linearly from dark violet to pale yellow, so that equal steps of the value look like equal steps, also
in grey print and to colour-blind readers.
"""

from __future__ import annotations

import numpy as np


def _oklab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """OKLab (n,) each -> sRGB (n, 3) in [0, 1], clipped to the gamut."""
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
            -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
            -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
        ],
        axis=1,
    ).clip(0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _build(n: int = 256) -> np.ndarray:
    t = np.linspace(0.0, 1.0, n)
    hue = np.deg2rad(290.0 + t * 180.0)  # violet, red, orange, yellow
    chroma = 0.07 + 0.13 * np.sin(np.pi * (0.12 + 0.76 * t))
    rgb = _oklab_to_srgb(0.18 + 0.77 * t, chroma * np.cos(hue), chroma * np.sin(hue))
    return np.asarray(np.rint(rgb * 255.0).astype(np.uint8))


SCALE = _build()


def colourise(values: np.ndarray) -> np.ndarray:
    """Map (H, W) in [0, 1] -> uint8 RGB (H, W, 3)."""
    index = np.rint(np.nan_to_num(np.clip(values, 0.0, 1.0)) * 255.0).astype(np.uint8)
    return np.asarray(SCALE[index])

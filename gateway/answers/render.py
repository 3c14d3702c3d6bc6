"""Maps and images of a decision as PNG bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from gateway.core.decode import to_image


def png(image: Image.Image) -> bytes:
    """PNG at the fastest compression: answers are small and latency counts."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def map_png(values: np.ndarray) -> bytes:
    """Grey PNG of a map (H, W) in [0, 1]: 0 is black, 1 is white."""
    finite = np.nan_to_num(np.clip(values, 0.0, 1.0))
    return png(Image.fromarray(np.rint(finite * 255.0).astype(np.uint8)))


def image_png(pixels: np.ndarray) -> bytes:
    """RGB or grey PNG of pixels float32 (C, H, W) in [0, 1]."""
    return png(to_pil(pixels))


def to_pil(pixels: np.ndarray) -> Image.Image:
    """Pillow image (RGB or L) of pixels float32 (C, H, W) in [0, 1]."""
    array = to_image(pixels)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)

"""Heat maps over the images that they explain, as PNG data for embedding in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from training.analysis.cam import normalised

COLOURS = "inferno"


def data_uri(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plain(image: Tensor) -> np.ndarray:
    """An image (C, H, W) in [0, 1] as uint8 (H, W, 3)."""
    pixels = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def overlaid(image: Tensor, heat: Tensor) -> np.ndarray:
    """A heat map (h, w) enlarged to the image (C, H, W) and laid over its grey version: uint8 (H, W, 3)."""
    size = (image.shape[1], image.shape[2])
    up = F.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0]
    strength = normalised(up)[0].cpu().numpy()
    grey = image.mean(0).cpu().numpy()[..., None]
    colour = colormaps[COLOURS](strength)[..., :3]
    return ((0.3 * grey + 0.7 * colour) * 255).round().clip(0, 255).astype(np.uint8)

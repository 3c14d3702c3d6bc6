from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gateway.answers.colours import SCALE, colourise
from gateway.answers.panel import panel_png
from gateway.answers.render import image_png, map_png
from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from gateway.core.pipeline import Pipeline
from tests.gateway.tiny import clean_image, encode, patched_image


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def test_maps_keep_their_values() -> None:
    values = np.linspace(0.0, 1.0, 256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(np.asarray(opened(map_png(values))), np.arange(256).reshape(16, 16))
    odd = np.array([[np.nan, -1.0, 2.0]], np.float32)
    assert np.asarray(opened(map_png(odd))).tolist() == [[0, 0, 255]]


def test_images_round_trip_through_our_decoder() -> None:
    image = patched_image()
    png = image_png(image.transpose(2, 0, 1).astype(np.float32) / 255)
    np.testing.assert_array_equal(decode_image(png, InputSpec(height=16, width=16)), image)


def test_the_colour_scale_rises_evenly_in_lightness() -> None:
    linear = (SCALE / 255.0) ** 2.2
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.cbrt(luminance)
    steps = np.diff(lightness[::16])
    assert (steps > 0).all()
    assert steps.max() < 2.5 * steps.mean()
    assert colourise(np.array([[0.0, 1.0]])).tolist() == [[SCALE[0].tolist(), SCALE[-1].tolist()]]


@pytest.mark.parametrize(("image", "tiles"), [(clean_image(), 3), (patched_image(), 4)])
def test_panel_has_a_tile_for_each_thing_that_happened(pipeline: Pipeline, image: np.ndarray, tiles: int) -> None:
    panel = opened(panel_png(pipeline.decide(encode(image))))
    assert panel.mode == "RGB"
    assert panel.width == 20 + tiles * 276
    # The first tile is the enlarged input, pixel for pixel.
    tile = np.asarray(panel)[62 : 62 + 256, 20 : 20 + 256]
    np.testing.assert_array_equal(tile[8::16, 8::16], image)

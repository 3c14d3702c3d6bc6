from __future__ import annotations

import time

import numpy as np
from hypothesis import example, given

from gateway.core.decode import Limits, decode_image
from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Resize
from gateway.errors import EmptyBody, ImageTooLarge, UndecodableImage, UnsupportedMediaType
from tests.fuzz.hostile import UNUSUAL, uploads

LIMITS = Limits(max_bytes=200_000, max_pixels=1_000_000)
SPECS = [InputSpec(height=16, width=16), InputSpec(height=9, width=20, channels=1, resize=Resize(rule="center_crop"))]
SECONDS = 20.0


@given(uploads)
@example(b"")
def test_bytes_become_an_image_or_a_named_refusal(data: bytes) -> None:
    for spec in SPECS:
        start = time.monotonic()
        try:
            image = decode_image(data, spec, LIMITS)
        except (EmptyBody, ImageTooLarge, UndecodableImage, UnsupportedMediaType) as error:
            assert 400 <= error.status < 500
            assert error.detail.isprintable()
        else:
            assert image.shape == (spec.height, spec.width, spec.channels)
            assert image.dtype == np.uint8
        assert time.monotonic() - start < SECONDS


def test_unusual_but_sound_images_are_decoded() -> None:
    for data in UNUSUAL:
        for spec in SPECS:
            assert decode_image(data, spec, LIMITS).shape == (spec.height, spec.width, spec.channels)

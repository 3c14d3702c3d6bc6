"""Fingerprints of decided images: salted random projections, from which near-duplicates are found and compared.

A fingerprint has three parts, each of which needs the salt. `exact` is a keyed hash of pixels at secret places and of
the means of cells: equal for one image sent twice. `coarse` is a projection of the means of 8 x 8 cells, normalised in
brightness and contrast, so that it survives re-encoding, noise and a shift of a pixel; neighbours are looked up by it.
`detail` is a projection of pixels at secret places, normalised alike, so that distances between two images, pixel for
pixel, can be estimated (Johnson and Lindenstrauss 1984; 64 signs give a distance within about 9 %). Whoever lacks the
salt cannot choose images by their fingerprints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CELLS = 8
COARSE = 64
"""Length of `coarse`, int8."""
DETAIL = 64
"""Length of `detail`, float16."""
SAMPLE = 1024
"""Pixels (of all channels) that `detail` is made from, where the image has as many."""
CONTRAST_FLOOR = 0.03
"""Smallest standard deviation (of 1) that images are normalised by, so that the noise of flat images stays small."""
COARSE_UNIT = 1 / 24
"""Step of the int8 numbers in `coarse`, whose standard deviation is 1 for images above the floor."""


@dataclass(frozen=True)
class Fingerprint:
    """`exact` 64 bits; `coarse` (64,) int8; `detail` (64,) float16; `contrast`, by which `detail` was divided."""

    exact: int
    coarse: np.ndarray
    detail: np.ndarray
    contrast: float


class Fingerprinter:
    """Makes the fingerprints of images (C, H, W) of one shape; every worker with the same salt makes the same ones."""

    def __init__(self, salt: bytes, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        self._shape = shape
        self._key = hashlib.blake2b(salt, digest_size=32, person=b"palisade-exact").digest()
        self._rows, self._columns = _means(height), _means(width).T.copy()
        cells = channels * self._rows.shape[0] * self._columns.shape[1]
        self._coarse = _signs(salt, b"coarse", cells, COARSE) / np.float32(np.sqrt(cells))
        size = channels * height * width
        keys = np.frombuffer(hashlib.shake_256(salt + b"places").digest(8 * size), np.uint64)
        self._places = np.sort(np.argsort(keys, kind="stable")[: min(SAMPLE, size)])
        self._detail = _signs(salt, b"detail", len(self._places), DETAIL) / np.float32(
            np.sqrt(len(self._places) * DETAIL)
        )

    def make(self, pixels: np.ndarray) -> Fingerprint:
        """The fingerprint of float32 pixels (C, H, W) in [0, 1]; `ValueError` for another shape."""
        return self.make_all([pixels])[0]

    def make_all(self, images: Sequence[np.ndarray]) -> list[Fingerprint]:
        """The fingerprints of several images, together in a fraction of the time; arguments and errors as of `make`."""
        cells = np.empty((len(images), len(self._coarse)), np.float32)
        places = np.empty((len(images), len(self._places)), np.float32)
        for cell, place, pixels in zip(cells, places, images, strict=True):
            if pixels.shape != self._shape:
                raise ValueError(f"pixels are {pixels.shape}, expected {self._shape}")
            # Image by image, so that the bits of `exact` do not depend on what else is in the batch.
            cell[:] = (self._rows @ pixels @ self._columns).ravel()
            place[:] = pixels.reshape(-1)[self._places]
        levels = np.rint(places * 255).astype(np.uint8), np.rint(cells * 65_535).astype(np.uint16)
        coarse = np.clip(np.rint(_normalised(cells)[0] @ self._coarse / COARSE_UNIT), -127, 127).astype(np.int8)
        samples, contrasts = _normalised(places)
        details = (samples @ self._detail).astype(np.float16)
        return [
            Fingerprint(self._hash(*of), *found)
            for of, found in zip(
                zip(*levels, strict=True), zip(coarse, details, contrasts.tolist(), strict=True), strict=True
            )
        ]

    def _hash(self, places: np.ndarray, cells: np.ndarray) -> int:
        digest = hashlib.blake2b(places.tobytes() + cells.tobytes(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little")


def _normalised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, k) less their mean, over their standard deviation (or the floor), and what they were divided by (n,)."""
    centred = values - values.mean(1, keepdims=True)
    contrast = np.maximum(np.sqrt((centred * centred).mean(1)), np.float32(CONTRAST_FLOOR))
    scaled: np.ndarray = centred / contrast[:, None]
    return scaled, contrast


def _means(n: int) -> np.ndarray:
    """The matrix (cells, n) whose product with n numbers is their mean in each of (at most) 8 cells of equal width."""
    cells = min(CELLS, n)
    edges = np.linspace(0, n, cells + 1)
    low, high = edges[:-1, None], edges[1:, None]
    places = np.arange(n)[None]
    covered = np.clip(np.minimum(high, places + 1) - np.maximum(low, places), 0, 1)
    means: np.ndarray = (covered / covered.sum(1, keepdims=True)).astype(np.float32)
    return means


def _signs(salt: bytes, name: bytes, rows: int, columns: int) -> np.ndarray:
    """A matrix (rows, columns) of +1 and -1 that the salt alone determines, on every machine and version."""
    bits = np.frombuffer(hashlib.shake_256(salt + name).digest(-(-rows * columns // 8)), np.uint8)
    signs: np.ndarray = np.unpackbits(bits, count=rows * columns).reshape(rows, columns).astype(np.float32) * 2 - 1
    return signs

"""Images of files as arrays: any size and format, decoded and resized by the gateway's own decoder.

Groups, which no split divides: the tracks of files named <track>_<frame> (two numbers, in every file of the folder),
else single images; and in both cases images of a class that are nearly the same count as one group.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from gateway.core.cores import usable_cores
from gateway.core.decode import Limits, Picture, described, open_image, recognized
from gateway.core.manifest import InputSpec
from gateway.core.orientation import orientation, without_orientation
from gateway.core.preprocessing import Resize
from training.data.store import let_go, room_for
from training.errors import DataError
from training.util.signatures import StepProgress, silent

TEST_SHARE = 0.2
# Mean difference of two images' 8 x 8 thumbnails, of 255, up to which images of equal hash are the same one.
ALIKE = 3.0
THUMBNAIL = InputSpec(height=8, width=8, resize=Resize(filter="box", reduced=True))
_LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=200_000_000)


def read_images(paths: list[Path], *, size: int | None, resize: Resize, progress: StepProgress = silent) -> np.ndarray:
    """uint8 (N, H, W, 3). Without a `size` all images must have one; with it they are resized as the gateway does.

    Many are kept in a file (`training.data.store`). `DataError` names the first file that is no image; it is raised
    before reading if there is no room for them.
    """
    side = size or _one_size(paths)
    height, width = (side, side) if isinstance(side, int) else side
    try:
        spec = InputSpec(height=height, width=width, resize=resize)
    except ValueError:
        raise DataError(f"images of {width} x {height}: 8 to 1024 pixels a side are served") from None
    made = room_for((len(paths), height, width, 3))
    with ThreadPoolExecutor(usable_cores()) as pool:
        for i, image in enumerate(_mapped(pool, paths, spec)):
            made[i] = image
            if i % 64 == 63 or i + 1 == len(paths):
                progress("reading images", i + 1, len(paths))
            if i % 1024 == 1023 or i + 1 == len(paths):
                let_go(made)
    return made


def _mapped(pool: ThreadPoolExecutor, paths: list[Path], spec: InputSpec) -> Iterable[np.ndarray]:
    """Images in order, a few hundred ahead at most."""
    for first in range(0, len(paths), 256):
        yield from pool.map(lambda path: decoded(path.read_bytes(), spec, str(path)), paths[first : first + 256])


def decoded(data: bytes, spec: InputSpec, name: str) -> np.ndarray:
    """An image file's bytes as the gateway would see it, uint8 (H, W, C); other formats than the gateway's, too."""
    with _named(name):
        return _opened(data).fitted(spec)


def _opened(data: bytes) -> Picture:
    """A file of any format that Pillow reads, by the gateway's rules of orientation, colour and transparency."""
    if recognized(data[:16]):
        return open_image(data, _LIMITS)
    # Pillow turns a TIFF as it decodes it, and fails where it cannot write the other tags anew.
    image = Image.open(io.BytesIO(without_orientation(data)))
    picture = described(image, _LIMITS)
    return replace(picture, orientation=orientation(data)) if image.format == "TIFF" else picture


@contextmanager
def _named(name: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  # Pillow's decoders raise nearly anything, all of it the file's
        raise DataError(f"{name}: not a readable image: {error}") from None


def _one_size(paths: list[Path]) -> tuple[int, int]:
    """(height, width) that all images have, upright."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        with _named(path):
            width, height = _opened(path.read_bytes()).upright_size
        sizes.setdefault((height, width), path)
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise DataError(
                f"images of mixed sizes: {first} is {one[1]} x {one[0]}, {second} {other[1]} x {other[0]}; give one "
                "--size (`size` in a recipe's data), to which all are resized"
            )
    return next(iter(sizes))


def joined_groups(thumbs: np.ndarray, y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """`group` (N,) with the groups joined that hold nearly the same image of one class, by `thumbnails` (N, 64).

    Nearly the same: equal average hash (each of 8 x 8 mean brightnesses above or below their mean), and brightnesses
    that differ by at most `ALIKE` on average.
    """
    joined = {int(g): int(g) for g in group}

    def root(g: int) -> int:
        while joined[g] != g:
            joined[g] = joined[joined[g]]
            g = joined[g]
        return g

    bits = np.packbits(thumbs > thumbs.mean(1, keepdims=True), axis=1)
    known: dict[tuple[int, bytes], list[int]] = {}
    for i, label in enumerate(y.tolist()):
        seen = known.setdefault((label, bits[i].tobytes()), [])
        like = next((j for j in seen if np.abs(thumbs[i] - thumbs[j]).mean() <= ALIKE), None)
        if like is None:
            seen.append(i)
        else:
            joined[root(int(group[i]))] = root(int(group[like]))
    return np.asarray([root(int(g)) for g in group], np.int64)


def thumbnails(paths: list[Path]) -> np.ndarray:
    """Mean brightness of 8 x 8 fields (N, 64) of the whole images, whatever part of them a network sees."""
    made = np.empty((len(paths), THUMBNAIL.height * THUMBNAIL.width), np.float32)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for i, image in enumerate(_mapped(pool, paths, THUMBNAIL)):
            made[i] = image.mean(2, dtype=np.float32).reshape(-1)
    return made

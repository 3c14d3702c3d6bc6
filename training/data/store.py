"""Room for many images: in memory, or, where they are too many for it, in a temporary file that is mapped into it.

Pages of a mapped file are written out and dropped as memory runs short. The file is deleted when nothing refers to it
any more, and when the process ends; it lies where TMPDIR points to.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile

import numpy as np

from training.errors import DataError

IN_MEMORY = 256_000_000
"""Bytes of images beyond which they are kept in a file."""
_CHUNK = 32_000_000


def room_for(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros of that shape; `DataError` if the folder of temporary files has no room for them."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        return np.zeros(shape, np.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{shape[0]} images need {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; use a smaller "
            "--size or fewer --images-per-class, or set TMPDIR to a folder that has room"
        )
    with tempfile.TemporaryFile(prefix="palisade-") as file:
        file.truncate(size)
        return np.ndarray(shape, np.uint8, buffer=mmap.mmap(file.fileno(), size))


def taken(images: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`images` (N, ...) uint8 of the rows `index` (M,): copies, in a file if they are large."""
    if images[:1].nbytes * len(index) <= IN_MEMORY:
        return np.asarray(images[index])
    made, step = room_for((len(index), *images.shape[1:])), max(1, _CHUNK // images[:1].nbytes)
    for first in range(0, len(index), step):
        made[first : first + step] = images[index[first : first + step]]
        let_go(images)
        let_go(made)
    return made


def let_go(images: np.ndarray) -> None:
    """Take the pages of images in a file out of this process's memory; they are read again as they are needed."""
    base: object = images.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)

"""Image folders as arrays: any size and format, decoded and resized by the gateway's own decoder.

Two layouts: ROOT/train/<class>/* with ROOT/test/<class>/*, or ROOT/<class>/*, of which a fifth of the groups becomes
the test part. Groups, which no split divides: the tracks of files named <track>_<frame> (two numbers, in every file of
the folder), else single images; and in both cases images of a class that are nearly the same count as one group.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from gateway.core.cores import usable_cores
from gateway.core.decode import Limits, Picture, described, open_image, recognized
from gateway.core.manifest import InputSpec, Resize
from gateway.core.orientation import orientation, without_orientation
from training.errors import DataError
from training.util.signatures import StepProgress, silent

TEST_SHARE = 0.2
# Mean difference of two images' 8 x 8 thumbnails, of 255, up to which images of equal hash are the same one.
ALIKE = 3.0
_LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=200_000_000)
_FRAME = re.compile(r"(\d+)_\d+")


@dataclass(frozen=True)
class Files:
    """Image files with their labels; `track` is the first number of a file's name where all are <track>_<frame>."""

    paths: list[Path]
    labels: np.ndarray
    track: np.ndarray | None


def has_test_part(root: Path) -> bool:
    """Whether `root` is of the layout train/<class>/ and test/<class>/."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def classes_of(root: Path) -> list[str]:
    """Names of the classes, sorted; `DataError` if there are fewer than two."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "train").is_dir() != (root / "test").is_dir():
        there, lacks = ("train", "test") if (root / "train").is_dir() else ("test", "train")
        raise DataError(f"{root} has {there}/ but no {lacks}/; give both, or folders of classes alone")
    inside = root / "train" if has_test_part(root) else root
    names = sorted(path.name for path in inside.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{inside} has {len(names)} folder(s) of a class; two are needed: {inside}/<class>/<image>")
    if has_test_part(root):
        tested = {path.name for path in (root / "test").iterdir() if path.is_dir() and not path.name.startswith(".")}
        if unknown := sorted(tested - set(names)):
            raise DataError(f"{root / 'test' / unknown[0]}: class has no folder in {inside}")
    return names


def list_files(root: Path, classes: list[str], *, per_class: int | None = None) -> Files:
    """The files of every class below `root`, in order, at most `per_class` of each, evenly spaced."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).glob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise DataError(f"{root / name}: class has no images")
        if per_class is not None and len(files) > per_class:
            files = [files[i * len(files) // per_class] for i in range(per_class)]
        paths += files
        labels += [label] * len(files)
    named = [_FRAME.fullmatch(path.stem) for path in paths]
    track = np.array([int(match[1]) for match in named if match]) if all(named) else None
    return Files(paths, np.asarray(labels, np.int64), track)


def read_images(paths: list[Path], *, size: int | None, resize: Resize, progress: StepProgress = silent) -> np.ndarray:
    """uint8 (N, H, W, 3). Without a `size` all images must have one; with it they are resized as the gateway does.

    `DataError` names the first file that is no image; it is raised before reading if they would not fit into memory.
    """
    side = size or _one_size(paths)
    height, width = (side, side) if isinstance(side, int) else side
    needed, free = len(paths) * height * width * 3, available_memory()
    if needed > 0.8 * free:
        raise DataError(
            f"{len(paths)} images of {width} x {height} need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are "
            "free; use a smaller --size or fewer --images-per-class"
        )
    try:
        spec = InputSpec(height=height, width=width, resize=resize)
    except ValueError:
        raise DataError(f"images of {width} x {height}: 8 to 1024 pixels a side are served") from None
    made = np.empty((len(paths), height, width, 3), np.uint8)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for i, image in enumerate(_mapped(pool, paths, spec)):
            made[i] = image
            if i % 64 == 63 or i + 1 == len(paths):
                progress("reading images", i + 1, len(paths))
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


def available_memory() -> int:
    """Bytes that this process may still take, as far as the system reports."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("utf-8"))
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def alike(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """`group` (N,) with the groups joined that hold nearly the same image of one class.

    Nearly the same: equal average hash (each of 8 x 8 mean brightnesses above or below their mean), and brightnesses
    that differ by at most `ALIKE` on average.
    """
    joined = {int(g): int(g) for g in group}

    def root(g: int) -> int:
        while joined[g] != g:
            joined[g] = joined[joined[g]]
            g = joined[g]
        return g

    thumbs = _thumbnails(x)
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


def _thumbnails(x: np.ndarray, side: int = 8) -> np.ndarray:
    """Mean brightness of 8 x 8 fields (N, 64) of images (N, H, W, C); of smaller images every pixel."""
    height, width = (extent // side * side or extent for extent in x.shape[1:3])
    fields = (min(side, height), min(side, width))
    made = np.empty((len(x), fields[0] * fields[1]), np.float32)
    for i in range(0, len(x), 512):
        grey = x[i : i + 512, :height, :width].mean(3, dtype=np.float32)
        cut = grey.reshape(len(grey), fields[0], height // fields[0], fields[1], width // fields[1])
        made[i : i + 512] = cut.mean((2, 4)).reshape(len(grey), -1)
    return made

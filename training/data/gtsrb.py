"""The German Traffic Sign Recognition Benchmark as its authors publish it, into one .npz file with tracks.

Stallkamp et al. 2012 (doi 10.1016/j.neunet.2012.02.016). Training: <class>/<track>_<frame>.ppm, 30 frames of each
physical sign. Test: <number>.ppm with the labels in GT-final_test.csv. Images are taken whole, with the margin around
the sign that they come with, and resized as the gateway resizes.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.atomic import replacing
from gateway.core.manifest import InputSpec
from training.data.folders import decoded
from training.errors import DataError
from training.util.signatures import StepProgress, silent

TRAINING = re.compile(r"(?:.*/)?(\d{5})/(\d{5})_(\d{5})\.(?:ppm|png)")
TEST = re.compile(r"(?:.*/)?(\d{5})\.(?:ppm|png)")
LABELS = "GT-final_test.csv"


@dataclass(frozen=True)
class _Found:
    """A file in a folder or an archive."""

    name: str
    read: Callable[[], bytes]


def convert_gtsrb(
    sources: Sequence[Path], out: Path, *, size: int = 32, progress: StepProgress = silent
) -> dict[str, int]:
    """Read archives or folders, write `out` (uint8 images, labels, `track_train`), and return how many of what.

    Raises `DataError` if training images, test images or test labels are not among the `sources`.
    """
    found = [file for source in sources for file in _files(source)]
    training = [(match, file) for file in found if (match := TRAINING.fullmatch(file.name))]
    test = [(match, file) for file in found if (match := TEST.fullmatch(file.name))]
    if not training:
        raise DataError(f"no training images (<class>/<track>_<frame>.ppm) in {', '.join(map(str, sources))}")
    if not test:
        raise DataError("no test images (<number>.ppm); give GTSRB_Final_Test_Images.zip, too")
    labels = _labels(found)
    if unknown := [file.name for match, file in test if match[1] not in labels]:
        raise DataError(f"{LABELS} has no label for {len(unknown)} test images, such as {unknown[0]}")
    spec = InputSpec(height=size, width=size)
    y_train, track, frame = (np.array([int(m[i]) for m, _ in training], np.int64) for i in (1, 2, 3))
    arrays = {
        "x_train": _images("training images", [file for _, file in training], spec, progress),
        "y_train": y_train,
        "track_train": track,
        "frame_train": frame,
        "x_test": _images("test images", [file for _, file in test], spec, progress),
        "y_test": np.array([labels[match[1]] for match, _ in test], np.int64),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    tracks = len(np.unique(y_train * 100_000 + track))
    return {"training": len(training), "tracks": tracks, "test": len(test), "classes": len(np.unique(y_train))}


def _files(source: Path) -> list[_Found]:
    """The files of a folder or a zip archive, by name."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        return [_Found(path.relative_to(source).as_posix(), path.read_bytes) for path in paths]
    if not source.is_file():
        raise DataError(f"{source}: no such archive or folder")
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise DataError(f"{source}: not a zip archive: {error}") from None
    return [_Found(name, lambda name=name: archive.read(name)) for name in sorted(archive.namelist())]  # type: ignore[misc]


def _labels(found: list[_Found]) -> dict[str, int]:
    """Class by number of the test image; the archive of test images has a file of that kind without classes."""
    for file in found:
        if not file.name.lower().endswith(".csv"):
            continue
        rows = list(csv.DictReader(io.StringIO(file.read().decode("utf-8-sig")), delimiter=";"))
        if rows and {"Filename", "ClassId"} <= set(rows[0]) and TEST.fullmatch(rows[0]["Filename"]):
            return {row["Filename"][:5]: int(row["ClassId"]) for row in rows}
    raise DataError(f"no {LABELS} with the column ClassId; it is in GTSRB_Final_Test_GT.zip: give that, too")


def _images(name: str, files: list[_Found], spec: InputSpec, progress: StepProgress) -> np.ndarray:
    made = np.empty((len(files), spec.height, spec.width, 3), np.uint8)
    for i, file in enumerate(files):
        try:
            made[i] = decoded(file.read(), spec, file.name)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{file.name}: damaged in its archive: {error}") from None
        if i % 256 == 255 or i + 1 == len(files):
            progress(name, i + 1, len(files))
    return made

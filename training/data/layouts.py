"""Which files of an image folder are images of which class.

| layout | labels |
| --- | --- |
| `train/<class>/*` and `test/<class>/*`, or `<class>/*` | names of the folders |
| `*` and `labels.csv` | its column `class` (a name) or `class_index` (from 0), beside `file` |
| `*` | none (-1) |

Where the classes are known beforehand, as a model's, a folder may have some of them only, and folders may be named by
their numbers. Files whose names begin with a dot are skipped.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.errors import DataError

LABELS = "labels.csv"
UNLABELLED = -1
_LARGEST = 10**18
_FRAME = re.compile(r"(\d+)_\d+")
# As cameras name photographs: 20240131_142530, with more digits where two are of one second.
_MOMENT = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])_([01]\d|2[0-3])([0-5]\d){2}\d{0,4}")


@dataclass(frozen=True)
class Files:
    """Image files with their labels; `track` is the first number of a file's name where all are <track>_<frame>.

    A date and a time of day are no track: a day's photographs would all be one.
    """

    paths: list[Path]
    labels: np.ndarray
    track: np.ndarray | None


def has_test_part(root: Path) -> bool:
    """Whether `root` is of the layout train/<class>/ and test/<class>/."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def parts_of(root: Path) -> list[Path]:
    """The folders `train` and `test`, or `root` alone."""
    return [root / "train", root / "test"] if has_test_part(root) else [root]


def classes_of(root: Path, known: Sequence[str] | None = None) -> list[str]:
    """Names of the classes: those `known`, else those that folders or labels state, sorted or by number.

    `DataError` if there are fewer than two, or a folder's is not known.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "train").is_dir() != (root / "test").is_dir():
        there, lacks = ("train", "test") if (root / "train").is_dir() else ("test", "train")
        raise DataError(f"{root} has {there}/ but no {lacks}/; give both, or folders of classes alone")
    inside = parts_of(root)[0]
    if known is not None:
        return list(known)
    if (inside / LABELS).is_file():
        return _classes_in_table(inside / LABELS)
    names = _folders(inside)
    if not names and _images(inside):
        raise DataError(f"{inside} has images, but neither folders of classes nor {LABELS}: name the model's classes")
    if len(names) < 2:
        raise DataError(f"{inside} has {len(names)} folder(s) of a class; two are needed: {inside}/<class>/<image>")
    if has_test_part(root) and (unknown := sorted(set(_folders(root / "test")) - set(names))):
        raise DataError(f"{root / 'test' / unknown[0]}: class has no folder in {inside}")
    return names


def names_classes(root: Path) -> bool:
    """Whether the folder `root` names its classes: by folders, or by `class` in its table; numbers are no names."""
    inside = parts_of(root)[0]
    if (inside / LABELS).is_file():
        return "class" in _rows(inside / LABELS)[0]
    return bool(_folders(inside))


def list_files(root: Path, classes: Sequence[str], *, per_class: int | None = None, some: bool = False) -> Files:
    """The files of every class below `root`, in order, at most `per_class` of each, evenly spaced.

    `DataError` for a class without images, unless `some` classes may be missing.
    """
    folders = _folders(root)
    if (root / LABELS).is_file():
        found = _tabulated(root / LABELS, classes)
    elif folders:
        numbers = {name: index for index, name in enumerate(classes)}
        found = {}
        for name in folders:
            found.setdefault(_number(name, numbers, root / name), []).extend(_images(root / name))
    else:
        found = {UNLABELLED: _images(root)}
    if not some and (empty := [name for label, name in enumerate(classes) if not found.get(label)]):
        raise DataError(f"{root / empty[0]}: class has no images")
    if not any(found.values()):
        raise DataError(f"{root}: no images")
    paths: list[Path] = []
    labels: list[int] = []
    for label in sorted(found):
        files = found[label]
        if per_class is not None and len(files) > per_class and label != UNLABELLED:
            files = [files[i * len(files) // per_class] for i in range(per_class)]
        paths += files
        labels += [label] * len(files)
    named = [_FRAME.fullmatch(path.stem) for path in paths]
    moments = all(_MOMENT.fullmatch(path.stem) for path in paths)
    track = _numbered([int(match[1]) for match in named if match]) if all(named) and not moments else None
    return Files(paths, np.asarray(labels, np.int64), track)


def _numbered(tracks: list[int]) -> np.ndarray:
    """The numbers of tracks; their ranks where some have more digits than an array holds."""
    if max(tracks) < _LARGEST:
        return np.array(tracks)
    return np.unique(np.array(tracks, object), return_inverse=True)[1]


def _folders(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if odd := [name for name in names if not _is_text(name)]:
        raise DataError(f"{root}: the folder {os.fsencode(odd[0])!r} has no name in UTF-8; rename it")
    return names


def _is_text(name: str) -> bool:
    """Whether a file's name is text; bytes that are not UTF-8 come as surrogates, which no manifest can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_file() and not p.name.startswith(".") and p.name != LABELS)


def _number(name: str, numbers: dict[str, int], where: Path | str) -> int:
    """The class of that name, or number."""
    if name in numbers:
        return numbers[name]
    if re.fullmatch(r"\d{1,6}", name) and int(name) < len(numbers):
        return int(name)
    some = ", ".join(list(numbers)[:3])
    raise DataError(f"{where}: there is no class {name!r} among the {len(numbers)} known ({some}, ...)")


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: unreadable: {error}") from None
    if not rows or "file" not in rows[0] or not {"class", "class_index"} & set(rows[0]):
        raise DataError(f"{table}: expected rows with the columns file and class, or file and class_index")
    label = "class_index" if "class_index" in rows[0] else "class"
    for number, row in enumerate(rows, start=1):
        if lacks := [name for name in ("file", label) if not row[name]]:
            raise DataError(f"{table}: row {number} of images has no {lacks[0]}")
    return rows


def _classes_in_table(table: Path) -> list[str]:
    rows = _rows(table)
    if "class_index" not in rows[0]:
        return sorted({row["class"] for row in rows})
    names: dict[int, str] = {}
    for row in rows:
        index = _index(row, table)
        name = row.get("class") or str(index)
        if names.setdefault(index, name) != name:
            raise DataError(f"{table}: class_index {index} is {names[index]!r}, and {name!r} of {row['file']}")
    return [names.get(index, str(index)) for index in range(1 + max(names))]


def _index(row: dict[str, str], table: Path) -> int:
    text = str(row["class_index"])
    if not re.fullmatch(r"\d{1,6}", text):
        raise DataError(f"{table}: class_index {text!r} of {row['file']} is not a number from 0")
    return int(text)


def _tabulated(table: Path, classes: Sequence[str]) -> dict[int, list[Path]]:
    """Files by class, as the table states; `DataError` names the first row that is wrong."""
    numbers = {name: index for index, name in enumerate(classes)}
    found: dict[int, list[Path]] = {}
    known: dict[Path, int] = {}
    for row in _rows(table):
        path = table.parent / row["file"]
        if not path.is_file():
            raise DataError(f"{table}: {row['file']}: no such file in {table.parent}")
        name = str(row["class_index"]) if "class_index" in row else str(row["class"])
        if "class_index" in row and _index(row, table) >= len(classes):
            raise DataError(f"{table}: class_index {name} of {row['file']}: there are {len(classes)} classes")
        label = _index(row, table) if "class_index" in row else _number(name, numbers, f"{table}: {row['file']}")
        if known.setdefault(path, label) != label:
            raise DataError(f"{table}: {row['file']} is there as {classes[known[path]]!r} and as {classes[label]!r}")
        found.setdefault(label, []).append(path)
    return found

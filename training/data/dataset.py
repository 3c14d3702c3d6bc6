"""Data sets as arrays in memory, and splits that are disjoint by group.

Sources: `npz:NAME` (NAME.npz with x_train, y_train, x_test, y_test and optional group_train, or track_train
within the class; no pickled objects),
`torchvision:CIFAR10` (downloads itself) and `folder:PATH` (PATH/train/<class>/* and PATH/test/<class>/*, or
PATH/<class>/*; `training.data.folders`). Relative paths are looked up here, and below the folder that the environment
variable PALISADE_DATA names (default `data/`).
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.core.manifest import Resize
from training.data.folders import TEST_SHARE, Files, alike, classes_of, has_test_part, list_files, read_images
from training.errors import DataError
from training.util.signatures import StepProgress, silent

SPLITS = ("train", "select", "calibrate", "test")
TORCHVISION = {"CIFAR10": "CIFAR10", "CIFAR100": "CIFAR100"}


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, C) in 0..255, labels int64 (N,), group ids int64 (N,)."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: np.ndarray) -> Split:
        return Split(self.x[index], self.y[index], self.group[index])


@dataclass(frozen=True)
class Dataset:
    """The four splits; no group is in two of train, select and calibrate. `notes` list what loading left out."""

    name: str
    classes: list[str]
    train: Split
    select: Split
    calibrate: Split
    test: Split
    notes: tuple[str, ...] = ()
    made_of: Dataset | None = None
    """The data of which these images were averaged down, which is what manifests and run folders state."""

    def describe(self) -> dict[str, object]:
        """Sizes, groups and SHA-256 (of images, labels and group ids) of each split, for manifests and run folders.

        A source's folders are left out of the name: manifests are published, the layout of a training machine is not.
        """
        if self.made_of is not None:
            return self.made_of.describe()
        splits: dict[str, object] = {
            name: {
                "n": len(split),
                "groups": len(np.unique(split.group)),
                "sha256": _digest(split),
            }
            for name in SPLITS
            for split in [getattr(self, name)]
        }
        kind, _, source = self.name.partition(":")
        return {"name": f"{kind}:{Path(source).name}"} | splits


@dataclass(frozen=True)
class _Loaded:
    """A source's training and test part, its class names where it has any, and notes."""

    train: Split
    test: Split
    classes: list[str] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Options:
    size: int | None
    resize: Resize
    images_per_class: int | None
    seed: int
    progress: StepProgress


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.x.tobytes())
    for array in (split.y, split.group):
        digest.update(array.astype(np.int64).tobytes())
    return digest.hexdigest()


def data_dir() -> Path:
    """The folder that data are found in: PALISADE_DATA, or `data/` of the working directory."""
    return Path(os.environ.get("PALISADE_DATA", "data"))


def folder_at(name: str) -> Path:
    """The image folder of that name: here, or below the folder of data."""
    return Path(name) if Path(name).is_dir() else data_dir() / name


def load_dataset(
    source: str,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.74, 0.08, 0.18),
    classes: list[str] | None = None,
    per_class: int | None = None,
    size: int | None = None,
    resize: Resize = Resize(),
    images_per_class: int | None = None,
    held_out: bool = False,
    progress: StepProgress = silent,
) -> Dataset:
    """Load `source` and split its training part by group into train, select and calibrate (`fractions`).

    Image folders are resized to `size`, as the gateway would, and at most `images_per_class` files of each are read.
    `held_out`: a network has seen the whole training part already, so it stays train, and the test part is split into
    test, select and calibrate. `per_class` keeps at most that many groups of each class in training and images of each
    class in test (smoke runs). Raises `DataError` with the way to get what is missing.
    """
    kind, _, name = source.partition(":")
    options = _Options(size, resize, images_per_class, seed, progress)
    loaders = {
        "npz": lambda: _load_npz(name),
        "torchvision": lambda: _load_torchvision(name),
        "folder": lambda: _load_folder(name, options),
    }
    if kind not in loaders or not name:
        raise DataError(f"unknown data source {source!r}; use npz:NAME, torchvision:CIFAR10 or folder:PATH")
    loaded = loaders[kind]()
    official, test, found = loaded.train, loaded.test, loaded.classes
    if official.x.shape[1:] != test.x.shape[1:]:
        raise DataError(f"{source}: training images are {official.x.shape[1:]}, test images {test.x.shape[1:]} in size")
    count = int(max(official.y.max(), test.y.max())) + 1
    classes = classes or found or [str(i) for i in range(count)]
    if len(classes) != count:
        raise DataError(f"{source}: {count} classes in the labels, {len(classes)} class names")
    if per_class is not None:
        official = official.take(_few_groups(official, per_class))
        test = test.take(_few_images(test, per_class))
    seen = test if held_out else official
    parts = deal(seen.y, seen.group, fractions=fractions, seed=seed, names=classes)
    first, select, calibrate = (seen.take(part) for part in parts)
    train, test = (official, first) if held_out else (first, test)
    return Dataset(source, classes, train, select, calibrate, test, loaded.notes)


def deal(
    y: np.ndarray, group: np.ndarray, *, fractions: Sequence[float], seed: int, names: Sequence[str] | None = None
) -> list[np.ndarray]:
    """Index arrays of as many parts as `fractions`: whole groups, stratified by class, each class in every part.

    Raises `DataError` if a class has fewer groups than parts, or a group more than one class: it would be dealt twice.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in fractions]
    if len(np.unique(np.stack([group, y]), axis=1).T) > len(np.unique(group)):
        raise DataError("a group has images of two classes; groups must be of one class each")
    for label in np.unique(y):
        groups = rng.permutation(np.unique(group[y == label]))
        if len(groups) < len(parts):
            name = label if names is None else repr(names[label])
            raise DataError(
                f"class {name} has {len(groups)} group(s) of images (a track, or images that are nearly the same, are "
                f"one); {len(parts)} are needed for disjoint splits"
            )
        counts = [max(1, round(fraction * len(groups))) for fraction in fractions[1:]]
        while sum(counts) >= len(groups):  # rounding of few groups must leave one for the first part
            largest = max(counts)
            counts[len(counts) - 1 - counts[::-1].index(largest)] -= 1
        cuts = len(groups) - np.cumsum(counts[::-1])[::-1]
        for part, members in zip(parts, np.split(groups, cuts), strict=True):
            part.extend(members.tolist())
    return [np.flatnonzero(np.isin(group, part)) for part in parts]


def _few_groups(split: Split, per_class: int) -> np.ndarray:
    keep = [np.unique(split.group[split.y == label])[:per_class] for label in np.unique(split.y)]
    return np.flatnonzero(np.isin(split.group, np.concatenate(keep)))


def _few_images(split: Split, per_class: int) -> np.ndarray:
    return np.sort(np.concatenate([np.flatnonzero(split.y == label)[:per_class] for label in np.unique(split.y)]))


def _colour(x: np.ndarray) -> np.ndarray:
    return x if x.ndim == 4 else np.repeat(x[..., None], 3, axis=3)


def _load_npz(name: str) -> _Loaded:
    path = data_dir() / f"{name}.npz"
    if not path.is_file():
        raise DataError(
            f"{path} is missing. Put an .npz with x_train, y_train, x_test, y_test (uint8 N x H x W x C, int64) there, "
            "or name the folder that has it in PALISADE_DATA."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        y_train, y_test = arrays["y_train"].astype(np.int64), arrays["y_test"].astype(np.int64)
        x_train, x_test = _colour(arrays["x_train"]), _colour(arrays["x_test"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a data set: {error}") from None
    if x_train.dtype != np.uint8 or x_test.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8, but are {x_train.dtype} and {x_test.dtype}")
    track = arrays.get("group_train", arrays.get("track_train", y_train))
    if not len(x_train) == len(y_train) == len(track) or len(x_test) != len(y_test):
        raise DataError(f"{path}: images, labels and tracks differ in number")
    if "group_train" in arrays:  # groups that may span classes: patients, cameras
        group = arrays["group_train"].astype(np.int64)
    elif "track_train" in arrays:  # tracks are numbered within their class
        group = y_train * 1_000_000 + arrays["track_train"].astype(np.int64)
    else:
        group = np.arange(len(y_train))
    known = json.loads((Path(__file__).parent / "classes.json").read_text("utf-8"))
    classes = [str(c) for c in arrays["classes"]] if "classes" in arrays else known.get(Path(name).name)
    return _Loaded(Split(x_train, y_train, group), Split(x_test, y_test, np.arange(len(y_test))), classes)


def _load_torchvision(name: str) -> _Loaded:
    from torchvision import datasets

    if name not in TORCHVISION:
        raise DataError(f"torchvision:{name} is not supported; use one of {', '.join(TORCHVISION)}")
    try:
        train, test = (getattr(datasets, name)(str(data_dir()), train=part, download=True) for part in (True, False))
    except Exception as error:  # noqa: BLE001  # the downloader raises whatever its transport raises
        raise DataError(f"torchvision:{name} could not be downloaded to {data_dir()}: {error}") from None
    splits = [
        Split(np.asarray(s.data), np.asarray(s.targets, np.int64), np.arange(len(s.targets))) for s in (train, test)
    ]
    return _Loaded(splits[0], splits[1], list(train.classes))


def _load_folder(name: str, options: _Options) -> _Loaded:
    root = folder_at(name)
    classes = classes_of(root)

    def read(part: Path) -> tuple[np.ndarray, Files]:
        files = list_files(part, classes, per_class=options.images_per_class)
        return read_images(files.paths, size=options.size, resize=options.resize, progress=options.progress), files

    if not has_test_part(root):
        x, files = read(root)
        return _carved(Split(x, files.labels, alike(x, files.labels, _groups(files))), classes, options.seed)
    (x_train, train), (x_test, test) = read(root / "train"), read(root / "test")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{root}: training images are {x_train.shape[1:]}, test images {x_test.shape[1:]} in size")
    n = len(x_train)
    group = np.concatenate([_groups(train), _groups(test) + _groups(train).max() + 1])
    group = alike(np.concatenate([x_train, x_test]), np.concatenate([train.labels, test.labels]), group)
    fresh = ~np.isin(group[:n], group[n:])
    notes = [f"{(~fresh).sum()} training images are left out, as the test part has nearly the same"]
    official = Split(x_train, train.labels, group[:n]).take(np.flatnonzero(fresh))
    held = _shuffled(Split(x_test, test.labels, group[n:]), options.seed)
    return _Loaded(official, held, classes, () if fresh.all() else tuple(notes))


def _groups(files: Files) -> np.ndarray:
    """Tracks, numbered within their class, or single images."""
    return np.arange(len(files.labels)) if files.track is None else files.labels * 10_000_000 + files.track


def _carved(split: Split, classes: list[str], seed: int) -> _Loaded:
    """`split` with a fifth of its groups as the test part."""
    rest, test = deal(split.y, split.group, fractions=(1 - TEST_SHARE, TEST_SHARE), seed=seed, names=classes)
    return _Loaded(split.take(rest), _shuffled(split.take(test), seed), classes)


def _shuffled(split: Split, seed: int) -> Split:
    """`split` in another order: folders come class by class, and evaluation takes the first so many test images."""
    return split.take(np.random.default_rng(seed).permutation(len(split)))

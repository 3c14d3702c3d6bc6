"""Data sets as arrays in memory, and splits that are disjoint by group.

Sources: `npz:NAME` (NAME.npz with x_train, y_train, x_test, y_test and optional group_train, or track_train
within the class; no pickled objects),
`torchvision:CIFAR10` (downloads itself) and `folder:PATH` (PATH/train/<class>/*, PATH/test/<class>/*). Relative paths
are looked up below the folder that the environment variable PALISADE_DATA names (default `data/`).
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.errors import DataError

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
    """The four splits; no group is in two of train, select and calibrate."""

    name: str
    classes: list[str]
    train: Split
    select: Split
    calibrate: Split
    test: Split

    def describe(self) -> dict[str, object]:
        """Sizes, groups and SHA-256 (of images, labels and group ids) of each split, for manifests and run folders.

        A source's folders are left out of the name: manifests are published, the layout of a training machine is not.
        """
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


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.x.tobytes())
    for array in (split.y, split.group):
        digest.update(array.astype(np.int64).tobytes())
    return digest.hexdigest()


def data_dir() -> Path:
    """The folder that data are found in: PALISADE_DATA, or `data/` of the working directory."""
    return Path(os.environ.get("PALISADE_DATA", "data"))


def load_dataset(
    source: str,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.74, 0.08, 0.18),
    classes: list[str] | None = None,
    per_class: int | None = None,
) -> Dataset:
    """Load `source` and split its training part by group into train, select and calibrate (`fractions`).

    `per_class` keeps at most that many groups of each class in training and images of each class in test (smoke runs).
    Raises `DataError` with the way to get what is missing.
    """
    kind, _, name = source.partition(":")
    loaders = {"npz": _load_npz, "torchvision": _load_torchvision, "folder": _load_folder}
    if kind not in loaders or not name:
        raise DataError(f"unknown data source {source!r}; use npz:NAME, torchvision:CIFAR10 or folder:PATH")
    official, test, found = loaders[kind](name)
    if official.x.shape[1:] != test.x.shape[1:]:
        raise DataError(f"{source}: training images are {official.x.shape[1:]}, test images {test.x.shape[1:]} in size")
    count = int(max(official.y.max(), test.y.max())) + 1
    classes = classes or found or [str(i) for i in range(count)]
    if len(classes) != count:
        raise DataError(f"{source}: {count} classes in the labels, {len(classes)} class names")
    if per_class is not None:
        official = official.take(_few_groups(official, per_class))
        test = test.take(_few_images(test, per_class))
    parts = split_by_group(official.y, official.group, fractions=fractions, seed=seed)
    train, select, calibrate = (official.take(part) for part in parts)
    return Dataset(source, classes, train, select, calibrate, test)


def split_by_group(
    y: np.ndarray, group: np.ndarray, *, fractions: tuple[float, float, float], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index arrays of train, select and calibrate: whole groups, stratified by class, each class in every part.

    Raises `DataError` if a class has fewer than three groups, or a group more than one class: it would be dealt twice.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[], [], []]
    if len(np.unique(np.stack([group, y]), axis=1).T) > len(np.unique(group)):
        raise DataError("a group has images of two classes; groups must be of one class each")
    for label in np.unique(y):
        groups = rng.permutation(np.unique(group[y == label]))
        if len(groups) < 3:
            raise DataError(f"class {label} has {len(groups)} group(s); three are needed for disjoint splits")
        select = max(1, round(fractions[1] * len(groups)))
        calibrate = max(1, round(fractions[2] * len(groups)))
        while select + calibrate >= len(groups):  # rounding of few groups must leave one to train on
            select, calibrate = (select - 1, calibrate) if select > calibrate else (select, calibrate - 1)
        cuts = [len(groups) - select - calibrate, len(groups) - calibrate]
        for part, members in zip(parts, np.split(groups, cuts), strict=True):
            part.extend(members.tolist())
    train, select_, calibrate_ = (np.flatnonzero(np.isin(group, part)) for part in parts)
    return train, select_, calibrate_


def _few_groups(split: Split, per_class: int) -> np.ndarray:
    keep = [np.unique(split.group[split.y == label])[:per_class] for label in np.unique(split.y)]
    return np.flatnonzero(np.isin(split.group, np.concatenate(keep)))


def _few_images(split: Split, per_class: int) -> np.ndarray:
    return np.sort(np.concatenate([np.flatnonzero(split.y == label)[:per_class] for label in np.unique(split.y)]))


def _colour(x: np.ndarray) -> np.ndarray:
    return x if x.ndim == 4 else np.repeat(x[..., None], 3, axis=3)


def _load_npz(name: str) -> tuple[Split, Split, list[str] | None]:
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
        raise DataError(f"{path}: images must be uint8, are {x_train.dtype} and {x_test.dtype}")
    track = arrays.get("group_train", arrays.get("track_train", y_train))
    if not len(x_train) == len(y_train) == len(track) or len(x_test) != len(y_test):
        raise DataError(f"{path}: images, labels and tracks must be as many as each other")
    if "group_train" in arrays:  # groups that may span classes: patients, cameras
        group = arrays["group_train"].astype(np.int64)
    elif "track_train" in arrays:  # tracks are numbered within their class
        group = y_train * 1_000_000 + arrays["track_train"].astype(np.int64)
    else:
        group = np.arange(len(y_train))
    known = json.loads((Path(__file__).parent / "classes.json").read_text("utf-8"))
    classes = [str(c) for c in arrays["classes"]] if "classes" in arrays else known.get(Path(name).name)
    return Split(x_train, y_train, group), Split(x_test, y_test, np.arange(len(y_test))), classes


def _load_torchvision(name: str) -> tuple[Split, Split, list[str] | None]:
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
    return splits[0], splits[1], list(train.classes)


def _load_folder(name: str) -> tuple[Split, Split, list[str] | None]:
    root = Path(name) if Path(name).is_absolute() else data_dir() / name
    if not (root / "train").is_dir() or not (root / "test").is_dir():
        raise DataError(f"{root} needs the folders train/<class>/ and test/<class>/ with images in them")
    classes = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    train, test = (_read_folder(root / part, classes) for part in ("train", "test"))
    return train, test, classes


def _read_folder(root: Path, classes: list[str]) -> Split:
    images, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).glob("*") if p.is_file())
        if not files:
            raise DataError(f"{root / name}: class has no images")
        for file in files:
            try:
                with Image.open(file) as image:
                    images.append(np.asarray(image.convert("RGB")))
            except OSError as error:
                raise DataError(f"{file}: not an image: {error}") from None
            labels.append(label)
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise DataError(f"{root}: images of {len(sizes)} sizes; resize them to one size first")
    return Split(np.stack(images), np.asarray(labels, np.int64), np.arange(len(labels)))

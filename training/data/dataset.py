"""Data sets as arrays, and splits that are disjoint by group.

Sources: `npz:NAME` (NAME.npz with x_train, y_train, x_test, y_test and optional group_train, or track_train within the
class; no pickled objects), `torchvision:CIFAR10` (downloads itself) and `folder:PATH` (`training.data.layouts`).
Relative paths are looked up here, and below the folder that the environment variable PALISADE_DATA names (default
`data/`).
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.core.preprocessing import Resize
from training.data.deal import deal, scarce
from training.data.folders import TEST_SHARE, joined_groups, read_images, thumbnails
from training.data.layouts import Files, classes_of, has_test_part, list_files
from training.data.store import let_go, taken
from training.errors import DataError
from training.util.signatures import StepProgress, silent

SPLITS = ("train", "select", "calibrate", "test")
TORCHVISION = {"CIFAR10": "CIFAR10", "CIFAR100": "CIFAR100"}


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, H, W, C) in 0..255, labels int64 (N,), group ids int64 (N,), and their `files` (N,) if any."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray
    files: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: np.ndarray) -> Split:
        files = None if self.files is None else self.files[index]
        return Split(taken(self.x, index), self.y[index], self.group[index], files)


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
    described: dict[str, object] | None = None
    """What `describe` answers if these are not the data as they were loaded: that of those."""

    @property
    def labelled(self) -> bool:
        """Whether every image has a label; those without have -1."""
        return all((getattr(self, name).y >= 0).all() for name in SPLITS)

    def describe(self) -> dict[str, object]:
        """Sizes, groups and SHA-256 (of images, labels and group ids) of each split, for manifests and run folders.

        A source's folders are left out of the name: manifests are published, the layout of a training machine is not.
        """
        if self.described is not None:
            return self.described
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
    test_share: float
    pool_scarce: bool
    classes: list[str] | None
    unread: bool
    grouped: bool
    seed: int
    progress: StepProgress


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for first in range(0, len(split), 256):
        digest.update(split.x[first : first + 256].tobytes())
        let_go(split.x)
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
    test_share: float = TEST_SHARE,
    pool_scarce: bool = False,
    unread: bool = False,
    grouped: bool = True,
    progress: StepProgress = silent,
) -> Dataset:
    """Load `source` and split its training part by group into train, select and calibrate (`fractions`).

    `held_out`: a network has seen the whole training part already, so it stays train, and the test part is split into
    test, select and calibrate. `per_class` keeps at most that many groups of each class in training and images of each
    class in test (smoke runs). Of image folders: of one without a test part `test_share` of the groups become it;
    images are resized to `size`, as the gateway would, and at most `images_per_class` files of each class are read;
    with `classes` it may lack some of them, and labels; with `pool_scarce` classes of too few images for every split
    are dealt together; `unread` images have no pixels, and unless they are `grouped` nothing is looked at but names.
    The splits depend on the files alone, not on how they are resized. Raises `DataError` with the way to get
    what is missing.
    """
    kind, _, name = source.partition(":")
    options = _Options(
        size, resize, images_per_class, test_share, pool_scarce, classes, unread, grouped, seed, progress
    )
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
    if len(classes) < count or (len(classes) > count and kind != "folder"):
        raise DataError(f"{source}: {count} classes in the labels, {len(classes)} class names")
    if per_class is not None:
        official = official.take(_few_groups(official, per_class))
        test = test.take(_few_images(test, per_class))
    seen = test if held_out else official
    parts = deal(seen.y, seen.group, fractions=fractions, seed=seed, names=classes, pool=pool_scarce)
    first, select, calibrate = (seen.take(part) for part in parts)
    train, test = (official, first) if held_out else (first, test)
    return Dataset(source, classes, train, select, calibrate, test, loaded.notes)


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
    stem = Path(name).name  # NAME_full is the whole of a set of which NAME is a part
    names = known.get(stem, known.get(stem.removesuffix("_full")))
    classes = [str(c) for c in arrays["classes"]] if "classes" in arrays else names
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
    root, known = folder_at(name), options.classes
    classes = classes_of(root, known)

    def read(part: Path) -> tuple[np.ndarray, Files]:
        files = list_files(part, classes, per_class=options.images_per_class, some=known is not None)
        if options.unread:
            return np.empty((len(files.paths), 0, 0, 3), np.uint8), files
        return read_images(files.paths, size=options.size, resize=options.resize, progress=options.progress), files

    def joined(files: list[Files], group: np.ndarray) -> np.ndarray:
        if not options.grouped:
            return group
        thumbs = thumbnails([path for each in files for path in each.paths])
        return joined_groups(thumbs, np.concatenate([each.labels for each in files]), group)

    if not has_test_part(root):
        x, files = read(root)
        return _carved(_split(x, files, joined([files], _groups(files))), classes, options)
    (x_train, train), (x_test, test) = read(root / "train"), read(root / "test")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{root}: training images are {x_train.shape[1:]}, test images {x_test.shape[1:]} in size")
    n = len(x_train)
    group = np.concatenate([_groups(train), _groups(test) + _groups(train).max() + 1])
    group = joined([train, test], group)
    fresh = ~np.isin(group[:n], group[n:])
    notes = [f"{(~fresh).sum()} training images are left out, as the test part has nearly the same"]
    official = _split(x_train, train, group[:n]).take(np.flatnonzero(fresh))
    held = _shuffled(_split(x_test, test, group[n:]), options.seed)
    return _Loaded(official, held, classes, () if fresh.all() else tuple(notes))


def _split(x: np.ndarray, files: Files, group: np.ndarray) -> Split:
    return Split(x, files.labels, group, np.array([str(path) for path in files.paths], object))


def _groups(files: Files) -> np.ndarray:
    """Tracks, numbered within their class, or single images."""
    return np.arange(len(files.labels)) if files.track is None else files.labels * 10_000_000 + files.track


def _carved(split: Split, classes: list[str], options: _Options) -> _Loaded:
    """`split` with a share of its groups as the test part."""
    shares = (1 - options.test_share, options.test_share)
    rest, test = deal(
        split.y, split.group, fractions=shares, seed=options.seed, names=classes, pool=options.pool_scarce
    )
    few, notes = scarce(split.y, split.group, shares) if options.pool_scarce else (), list[str]()
    if len(few) and split.y.min() >= 0:
        notes = [f"{len(few)} of {len(np.unique(split.y))} classes have too few images for every split: dealt together"]
    return _Loaded(split.take(rest), _shuffled(split.take(test), options.seed), classes, tuple(notes))


def _shuffled(split: Split, seed: int) -> Split:
    """`split` in another order: folders come class by class, and evaluation takes the first so many test images."""
    return split.take(np.random.default_rng(seed).permutation(len(split)))

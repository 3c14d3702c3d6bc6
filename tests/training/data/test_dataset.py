from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.dataset import load_dataset
from training.data.deal import deal
from training.errors import DataError

FRACTIONS = (0.6, 0.2, 0.2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    return tmp_path


def arrays(**changes: np.ndarray) -> dict[str, Any]:
    """30 images of 3 classes, 5 tracks of two frames by class; pixels tell images apart."""
    y = np.repeat(np.arange(3), 10)
    x = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    made = {
        "x_train": x,
        "y_train": y,
        "track_train": np.tile(np.repeat(np.arange(5), 2), 3),
        "x_test": x[:6] + 100,
        "y_test": np.arange(6) % 3,
    }
    return made | changes


def write(folder: Path, **changes: np.ndarray) -> None:
    np.savez(folder / "small.npz", **arrays(**changes))


def test_splits_are_disjoint_by_group_and_hold_every_class(folder: Path) -> None:
    write(folder)
    data = load_dataset("npz:small", fractions=FRACTIONS)
    parts = (data.train, data.select, data.calibrate)
    assert sum(len(p) for p in parts) == 30
    images = np.concatenate([p.x[:, 0, 0, 0] for p in parts])
    assert sorted(images.tolist()) == list(range(30))
    groups = [set(p.group.tolist()) for p in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    for part in parts:
        assert set(part.y.tolist()) == {0, 1, 2}
        assert (part.x[:, 0, 0, 0] // 10 == part.y).all()  # labels stay with their images
    assert [len(g) for g in groups] == [9, 3, 3]
    assert len(data.test) == 6


def test_track_numbers_are_by_class(folder: Path) -> None:
    """Track 0 of class 0 and track 0 of class 1 are different signs."""
    write(folder)
    data = load_dataset("npz:small", fractions=FRACTIONS)
    assert sum(len(np.unique(p.group)) for p in (data.train, data.select, data.calibrate)) == 15


def test_seed_decides_the_split() -> None:
    y = np.repeat(np.arange(4), 50)
    group = np.arange(200) // 2
    a, b, c = (deal(y, group, fractions=FRACTIONS, seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(i, j) for i, j in zip(a, b, strict=True))
    assert not np.array_equal(a[0], c[0])
    assert [len(p) for p in a] == [120, 40, 40]


@pytest.mark.parametrize("fractions", [(0.74, 0.08, 0.18), (0.2, 0.4, 0.4), (0.02, 0.49, 0.49), (0.98, 0.01, 0.01)])
@pytest.mark.parametrize("groups", [3, 4, 5, 7])
def test_each_class_is_in_each_part_however_few_its_groups(fractions, groups: int) -> None:
    y = np.repeat(np.arange(3), groups)
    parts = deal(y, np.arange(len(y)), fractions=fractions, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))
    for part in parts:
        assert set(y[part].tolist()) == {0, 1, 2}


def test_too_few_groups_are_named() -> None:
    with pytest.raises(DataError, match=r"class 1 has 2 group"):
        deal(np.array([0, 0, 0, 1, 1]), np.arange(5), fractions=FRACTIONS, seed=0)


def test_group_of_two_classes_is_refused() -> None:
    """It would be dealt once for each class, perhaps to two parts."""
    y, group = np.tile(np.arange(2), 20), np.arange(40) // 2
    with pytest.raises(DataError, match="group"):
        deal(y, group, fractions=FRACTIONS, seed=0)


def test_missing_file_says_where_to_put_it(folder: Path) -> None:
    with pytest.raises(DataError, match="PALISADE_DATA") as caught:
        load_dataset("npz:absent")
    assert str(folder / "absent.npz") in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": np.zeros((30, 4, 4, 3), np.float32)},
        {"x_test": np.zeros((6, 4, 4, 3), np.float32)},
        {"y_train": np.zeros(29, np.int64)},
        {"y_test": np.zeros(5, np.int64)},
        {"x_test": np.zeros((6, 5, 4, 3), np.uint8)},
        {"track_train": np.zeros(29, np.int64)},
        {"x_train": np.array([None, 1], dtype=object)},
    ],
    ids=["float", "float test", "labels", "test labels", "mixed sizes", "tracks", "pickled"],
)
def test_malformed_arrays_are_refused_by_name(folder: Path, changes: dict[str, np.ndarray]) -> None:
    write(folder, **changes)
    with pytest.raises(DataError, match=r"small"):
        load_dataset("npz:small", fractions=FRACTIONS)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_damaged_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "small.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"small\.npz: not a data set"):
        load_dataset("npz:small")


def test_missing_array_is_named(folder: Path) -> None:
    made = arrays()
    del made["y_test"]
    np.savez(folder / "small.npz", **made)
    with pytest.raises(DataError, match="y_test"):
        load_dataset("npz:small")


def test_grey_images_become_colour(folder: Path) -> None:
    write(folder, x_train=arrays()["x_train"][..., 0], x_test=arrays()["x_test"][..., 0])
    data = load_dataset("npz:small", fractions=FRACTIONS)
    assert data.train.x.shape[1:] == data.test.x.shape[1:] == (4, 4, 3)


@pytest.mark.parametrize("source", ["npz", "npz:", "http:x", "small", "torchvision:ImageNet"])
def test_unknown_sources_are_refused(source: str) -> None:
    with pytest.raises(DataError, match="use"):
        load_dataset(source)


def test_class_names_must_fit(folder: Path) -> None:
    write(folder)
    assert load_dataset("npz:small", classes=["a", "b", "c"], fractions=FRACTIONS).classes == ["a", "b", "c"]
    with pytest.raises(DataError, match="3 classes in the labels, 2 class names"):
        load_dataset("npz:small", classes=["a", "b"], fractions=FRACTIONS)


def test_per_class_limits_groups_and_test_images(folder: Path) -> None:
    write(folder)
    data = load_dataset("npz:small", per_class=3, fractions=FRACTIONS)
    assert [len(np.unique(p.group)) for p in (data.train, data.select, data.calibrate)] == [3, 3, 3]
    assert len(load_dataset("npz:small", per_class=3).test) == 6


def test_description_tells_data_apart(folder: Path) -> None:
    write(folder)
    a: dict[str, Any] = load_dataset("npz:small", fractions=FRACTIONS).describe()
    again = load_dataset("npz:small", fractions=FRACTIONS).describe()
    b: dict[str, Any] = load_dataset("npz:small", fractions=FRACTIONS, seed=1).describe()
    assert a == again
    assert a["train"]["n"] == 18
    assert a["train"]["groups"] == 9
    assert a["train"]["sha256"] != b["train"]["sha256"]
    assert a["test"] == b["test"]
    relabelled = load_dataset("npz:small", fractions=FRACTIONS)
    relabelled.test.y[0] = (relabelled.test.y[0] + 1) % 3
    assert relabelled.describe()["test"] != a["test"]


def test_description_does_not_tell_where_the_data_lay(folder: Path) -> None:
    write(folder)
    data = load_dataset("npz:small", fractions=FRACTIONS)
    assert replace(data, name="folder:/home/someone/signs").describe()["name"] == "folder:signs"

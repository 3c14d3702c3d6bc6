"""Image folders as they come: folders of classes, a table of labels, or images alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.dataset import Dataset, load_dataset
from training.data.layouts import classes_of, list_files
from training.errors import DataError

NAMES = ["cat", "dog", "eel"]


def pictures(folder: Path, count: int, *, first: int = 0) -> list[str]:
    """`count` images that differ, and their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
        names.append(f"p{number}.png")
    return names


def load(root: Path, **options: object) -> Dataset:
    settings = {"size": 8, "fractions": (0.0, 0.41, 0.59), "test_share": 0.15, "pool_scarce": True} | options
    return load_dataset(f"folder:{root}", **settings)  # type: ignore[arg-type]


def test_folders_of_some_of_the_models_classes_by_name_or_number(tmp_path: Path) -> None:
    pictures(tmp_path / "eel", 3)
    pictures(tmp_path / "000", 2, first=3)
    assert classes_of(tmp_path, NAMES) == NAMES
    assert list_files(tmp_path, NAMES, some=True).labels.tolist() == [0, 0, 2, 2, 2]
    pictures(tmp_path / "fox", 1)
    with pytest.raises(DataError, match=r"fox: there is no class 'fox' among the 3 known \(cat, dog, eel"):
        list_files(tmp_path, NAMES, some=True)


@pytest.mark.parametrize("column", ["class", "class_index"])
def test_a_table_of_labels(tmp_path: Path, column: str) -> None:
    files = pictures(tmp_path, 6)
    labels = ["dog", "cat", "dog", "dog", "cat", "dog"]
    told = labels if column == "class" else [str(NAMES.index(label)) for label in labels]
    table = tmp_path / "labels.csv"
    table.write_text(f"file,{column}\n" + "".join(f"{f},{t}\n" for f, t in zip(files, told, strict=True)))
    assert classes_of(tmp_path) == (["cat", "dog"] if column == "class" else ["0", "1"])
    found = list_files(tmp_path, NAMES, some=True)
    assert found.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert [path.name for path in found.paths[:2]] == ["p1.png", "p4.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\np0.png,cat\n", "columns file and class"),
        ("file,class\ngone.png,cat\n", r"gone\.png: no such file"),
        ("file,class\np0.png,fox\n", "no class 'fox'"),
        ("file,class_index\np0.png,3\n", "class_index 3 of p0.png: there are 3 classes"),
        ("file,class_index\np0.png,one\n", "'one' of p0.png is not a number"),
    ],
)
def test_a_table_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    pictures(tmp_path, 2)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list_files(tmp_path, NAMES, some=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\np0.png,cat\np1.png\n", "row 2 of images has no class"),
        ("file,class\np0.png,cat\np1.png,\n", "row 2 of images has no class"),
        ("class,file\ncat,p0.png\ndog\n", "row 2 of images has no file"),
        ("file,class\np0.png,cat\np0.png,dog\n", "p0.png is there as 'cat' and as 'dog'"),
        ("file,class,class_index\np0.png,cat,0\np1.png,dog,0\n", "class_index 0 is 'cat', and 'dog' of p1.png"),
    ],
)
def test_a_table_that_lacks_or_contradicts(tmp_path: Path, text: str, message: str) -> None:
    pictures(tmp_path, 2)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list_files(tmp_path, classes_of(tmp_path), some=True)


def test_names_of_a_table_that_has_numbers_as_well(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    (tmp_path / "labels.csv").write_text("file,class,class_index\np0.png,zebra,0\np1.png,ant,2\np2.png,zebra,0\n")
    assert classes_of(tmp_path) == ["zebra", "1", "ant"]
    assert list_files(tmp_path, classes_of(tmp_path), some=True).labels.tolist() == [0, 0, 2]


def test_images_alone_are_unlabelled(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    with pytest.raises(DataError, match="name the model's classes"):
        classes_of(tmp_path)
    data = load(tmp_path, classes=NAMES)
    assert not data.labelled
    assert [len(split) for split in (data.train, data.select, data.calibrate, data.test)] == [0, 14, 20, 6]
    assert data.notes == ()


def test_classes_too_small_for_every_split_are_dealt_together(tmp_path: Path) -> None:
    for number in range(60):
        pictures(tmp_path / f"one{number:02}", 1, first=number)
    pictures(tmp_path / "many", 20, first=60)
    with pytest.raises(DataError, match="1 group"):
        load(tmp_path, pool_scarce=False)
    data = load(tmp_path)
    assert data.notes == ("60 of 61 classes have too few images for every split: dealt together",)
    sizes = {name: len(getattr(data, name)) for name in ("train", "select", "calibrate", "test")}
    assert sum(sizes.values()) == 80
    assert sizes == {"train": 0, "select": 28, "calibrate": 40, "test": 12}
    assert all((getattr(data, name).y == 0).any() for name in ("select", "calibrate", "test"))  # class `many`


@pytest.mark.parametrize("few", [1, 2, 3])
@pytest.mark.parametrize("held_out", [False, True])
def test_one_class_of_few_images_beside_large_ones(tmp_path: Path, few: int, held_out: bool) -> None:
    parts = [tmp_path / "train", tmp_path / "test"] if held_out else [tmp_path]
    for number, part in enumerate(parts):
        for label, count in enumerate([12, few, 30]):
            pictures(part / NAMES[label], count, first=1000 * number + 100 * label)
    options = {"fractions": (0.2, 0.3, 0.5), "held_out": True} if held_out else {}
    data = load(tmp_path, **options)
    splits = [data.test, data.select, data.calibrate]
    assert sum(map(len, splits)) == 42 + few
    assert all(set(split.y) >= {2} for split in splits)
    assert sum(int((split.y == 1).sum()) for split in splits) == few


def test_tracks_of_many_digits(tmp_path: Path) -> None:
    """Times in microseconds, numbers of a social network: more than 64 bits."""
    for name in pictures(tmp_path, 4):
        (tmp_path / name).rename(tmp_path / f"2024013114253012345{int(name[1]) // 2}678_{name[1]}.png")
    track = list_files(tmp_path, NAMES, some=True).track
    assert track is not None
    assert track.tolist() == [0, 0, 1, 1]


def test_a_class_whose_name_is_no_text(tmp_path: Path) -> None:
    pictures(tmp_path / "cat", 1)
    (tmp_path / os.fsdecode(b"d\xe9g")).mkdir()
    with pytest.raises(DataError, match=r"the folder b'd\\xe9g' has no name in UTF-8; rename it"):
        classes_of(tmp_path)


def test_unread_images_are_counted_alike(tmp_path: Path) -> None:
    for label in range(3):
        pictures(tmp_path / NAMES[label], 20, first=20 * label)
    read, unread = load(tmp_path), load(tmp_path, unread=True)
    assert [len(getattr(unread, name)) for name in ("select", "calibrate", "test")] == [
        len(getattr(read, name)) for name in ("select", "calibrate", "test")
    ]
    assert unread.calibrate.x.size == 0


def test_a_date_and_a_time_are_no_track(tmp_path: Path) -> None:
    names = ("20240131_142530", "20240131_142531", "20240131_142531123", "20240201_000000")
    for name, picture in zip(names, pictures(tmp_path, 4), strict=True):
        (tmp_path / picture).rename(tmp_path / f"{name}.png")
    assert list_files(tmp_path, NAMES, some=True).track is None
    (tmp_path / f"{names[0]}.png").rename(tmp_path / "20241301_142530.png")  # there is no such month
    found = list_files(tmp_path, NAMES, some=True).track
    assert found is not None
    assert len(set(found.tolist())) == 3

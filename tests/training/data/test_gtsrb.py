"""The converter of the official traffic-sign archives, on a tiny copy of their layout."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.commands.main import app
from training.data.dataset import load_dataset
from training.data.gtsrb import convert_gtsrb
from training.errors import DataError

CLASSES, TRACKS, FRAMES, TESTS = 2, 4, 3, 5


def ppm(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40 + value, 30), (value, value, value)).save(buffer, "PPM")
    return buffer.getvalue()


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    """Training images, test images (with a CSV file that has no classes) and the test labels."""
    paths = [tmp_path / name for name in ("training.zip", "test.zip", "labels.zip")]
    with zipfile.ZipFile(paths[0], "w") as archive:
        for label in range(CLASSES):
            archive.writestr(f"GTSRB/Final_Training/Images/{label:05d}/GT-{label:05d}.csv", "Filename;ClassId\n")
            for track in range(TRACKS):
                for frame in range(FRAMES):
                    name = f"GTSRB/Final_Training/Images/{label:05d}/{track:05d}_{frame:05d}.ppm"
                    archive.writestr(name, ppm(100 * label + 10 * track + frame))
    with zipfile.ZipFile(paths[1], "w") as archive:
        archive.writestr("GTSRB/Final_Test/Images/GT-final_test.test.csv", "Filename;Width\n00000.ppm;40\n")
        for number in range(TESTS):
            archive.writestr(f"GTSRB/Final_Test/Images/{number:05d}.ppm", ppm(number))
    with zipfile.ZipFile(paths[2], "w") as archive:
        rows = "".join(f"{number:05d}.ppm;40;{number % CLASSES}\n" for number in range(TESTS))
        archive.writestr("GT-final_test.csv", "Filename;Width;ClassId\n" + rows)
    return paths


def test_archives_become_one_file_with_tracks(
    archives: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data" / "signs.npz"
    told = CliRunner().invoke(app, ["data", "gtsrb", *map(str, archives), "--out", str(out), "--size", "16"])
    assert told.exit_code == 0, told.output
    assert "24 training images of 8 signs and 5 test images of 2 classes" in " ".join(told.output.split())
    monkeypatch.setenv("PALISADE_DATA", str(out.parent))
    data = load_dataset("npz:signs", fractions=(0.5, 0.25, 0.25))
    assert data.train.x.shape[1:] == (16, 16, 3)
    assert [len(np.unique(split.group)) for split in (data.train, data.select, data.calibrate)] == [4, 2, 2]
    assert (data.train.x[:, 0, 0, 0] // 100 == data.train.y).all()
    assert data.test.y.tolist() == [0, 1, 0, 1, 0]
    assert data.test.x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_unpacked_archives_do_as_well(archives: list[Path], tmp_path: Path) -> None:
    for path in archives:
        zipfile.ZipFile(path).extractall(tmp_path / "unpacked")
    convert_gtsrb(archives, tmp_path / "a.npz", size=8)
    convert_gtsrb([tmp_path / "unpacked"], tmp_path / "b.npz", size=8)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


@pytest.mark.parametrize(
    ("given", "message"), [([0], "no test images"), ([1], "no training images"), ([0, 1], "ClassId.*Test_GT")]
)
def test_what_is_missing_is_named(archives: list[Path], tmp_path: Path, given: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert_gtsrb([archives[i] for i in given], tmp_path / "signs.npz")
    assert not list(tmp_path.glob("signs*"))


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"training\.zip: not a zip archive"):
        convert_gtsrb([tmp_path / "training.zip"], tmp_path / "signs.npz")
    with pytest.raises(DataError, match="no such archive"):
        convert_gtsrb([tmp_path / "absent.zip"], tmp_path / "signs.npz")

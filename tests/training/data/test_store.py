"""Many images lie in a temporary file that nobody has to delete."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training.data import store
from training.data.dataset import Split
from training.errors import DataError


def test_many_images_lie_in_a_file_and_are_taken_into_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 1000)
    monkeypatch.setattr(store, "_CHUNK", 500)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    room = store.room_for(images.shape)
    room[:] = images
    split = Split(room, np.arange(40), np.arange(40))
    order = np.random.default_rng(1).permutation(40)
    some = split.take(order)
    assert np.array_equal(some.x, images[order])
    assert np.array_equal(split.take(order[:3]).x, images[order[:3]])
    assert str(tmp_path) in Path("/proc/self/maps").read_text()  # mapped, and deleted already
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_of_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(DataError, match=r"40 images need .* GB are free; .*TMPDIR"):
        store.room_for((40, 8, 8, 3))

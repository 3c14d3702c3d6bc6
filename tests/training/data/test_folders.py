"""Image folders: layouts, sizes, groups, and what is wrong with them said in one sentence."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from gateway.core.decode import decode_image
from gateway.core.manifest import InputSpec
from gateway.core.preprocessing import Resize
from tests.gateway.exif_blocks import block, entry, short
from tests.gateway.icc_files import SRGB, converted, rgb_profile
from training.data import folders, store
from training.data.dataset import Dataset, load_dataset
from training.errors import DataError

FRACTIONS = (0.6, 0.2, 0.2)
CLASSES = ("stop", "yield")


def picture(rng: np.random.Generator, label: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Noise whose red is the class."""
    pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    pixels[..., 0] = label * 100
    return Image.fromarray(pixels)


def fill(root: Path, *, names: list[str], size: tuple[int, int] = (12, 10), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for file in names:
            picture(rng, label, size).save(root / name / file)
    return root


def numbered(count: int, suffix: str = "png") -> list[str]:
    return [f"photo{i}.{suffix}" for i in range(count)]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    fill(tmp_path / "train", names=numbered(6))
    fill(tmp_path / "test", names=numbered(5), seed=1)
    return tmp_path


def load(root: Path, **options: object) -> Dataset:
    return load_dataset(f"folder:{root}", **({"fractions": FRACTIONS} | options))  # type: ignore[arg-type]


def images(*splits) -> set[bytes]:
    return {image.tobytes() for split in splits for image in split.x}


def test_train_and_test_folders(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(parts)
    assert data.classes == list(CLASSES)
    assert data.train.x.shape[1:] == (10, 12, 3)
    assert data.train.x.dtype == np.uint8
    assert (data.train.x[:, 0, 0, 0] // 100 == data.train.y).all()
    assert (len(data.train), len(data.select), len(data.calibrate), len(data.test)) == (8, 2, 2, 10)
    monkeypatch.setenv("PALISADE_DATA", str(parts.parent))
    assert np.array_equal(load_dataset(f"folder:{parts.name}", fractions=FRACTIONS).train.x, data.train.x)


def test_folders_of_classes_alone_are_split_by_us(tmp_path: Path) -> None:
    data = load(fill(tmp_path / "plain", names=numbered(10)))
    splits = (data.train, data.select, data.calibrate, data.test)
    assert len(images(*splits)) == sum(len(split) for split in splits) == 20
    assert len(data.test) == 4
    assert all(set(split.y.tolist()) == {0, 1} for split in splits)


def test_a_network_that_has_seen_the_training_part_is_calibrated_on_the_rest(parts: Path) -> None:
    data = load(parts, held_out=True)
    assert len(data.train) == 12
    assert images(data.select, data.calibrate, data.test) == images(load(parts).test)


def test_mixed_sizes_are_resized_as_the_gateway_resizes(tmp_path: Path) -> None:
    root = fill(tmp_path / "plain", names=numbered(5))
    picture(np.random.default_rng(7), 0, (40, 20)).save(root / "stop" / "wide.jpg")
    with pytest.raises(DataError, match=r"mixed sizes.*--size"):
        load(root)
    resize = Resize(rule="center_crop")
    data = load(root, size=16, resize=resize)
    wanted = decode_image((root / "stop" / "wide.jpg").read_bytes(), InputSpec(height=16, width=16, resize=resize))
    assert wanted.tobytes() in images(data.train, data.select, data.calibrate, data.test)


def test_training_files_may_be_what_the_gateway_does_not_take(tmp_path: Path) -> None:
    as_png = fill(tmp_path / "png", names=numbered(5))
    as_ppm = fill(tmp_path / "ppm", names=numbered(5, "ppm"))
    assert np.array_equal(load(as_ppm).train.x, load(as_png).train.x)


def tiff(pixels: np.ndarray, order: str, turned: int, *others: bytes) -> bytes:
    """An uncompressed TIFF of one strip."""
    height, width = pixels.shape[:2]
    entries = [
        entry(order, 256, 3, 1, struct.pack(order + "H", width)),
        entry(order, 257, 3, 1, struct.pack(order + "H", height)),
        entry(order, 258, 3, 3, struct.pack(order + "I", 8 + pixels.nbytes)),
        entry(order, 259, 3, 1, struct.pack(order + "H", 1)),
        entry(order, 262, 3, 1, struct.pack(order + "H", 2)),
        entry(order, 273, 4, 1, struct.pack(order + "I", 8)),
        short(order, turned),
        entry(order, 277, 3, 1, struct.pack(order + "H", 3)),
        entry(order, 278, 3, 1, struct.pack(order + "H", height)),
        entry(order, 279, 4, 1, struct.pack(order + "I", pixels.nbytes)),
        *others,
    ]
    depths = struct.pack(order + "3H", 8, 8, 8)
    made = block(order, entries, start=8 + pixels.nbytes + len(depths))
    return made[:8] + pixels.tobytes() + depths + made[8 + pixels.nbytes + len(depths) :]


SPEC = InputSpec(height=16, width=16)
STORED = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
TURNED = np.rot90(STORED, -1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_is_turned_whatever_its_other_tags_hold(order: str) -> None:
    hostile = [
        entry(order, 282, 9, 1, b"\xf6\xff\xff\xff"),
        entry(order, 282, 2, 1, b"\x00"),
        entry(order, 282, 10, 1, struct.pack(order + "I", 8)),
        entry(order, 305, 3, 1, b"\x00\x09"),
        entry(order, 700, 12, 1, struct.pack(order + "I", 8)),
    ]
    for others in ([], *([other] for other in hostile)):
        for turned, wanted in ((1, STORED), (6, TURNED), (9, STORED)):
            made = folders.decoded(tiff(STORED, order, turned, *others), SPEC, "x.tif")
            np.testing.assert_array_equal(made, wanted)


def saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def test_converted_formats_follow_the_gateways_rules() -> None:
    exif = block("<", [short("<", 6)])
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
        data = saved(Image.fromarray(STORED), "TIFF", compression=compression, tiffinfo={274: 6})
        np.testing.assert_array_equal(folders.decoded(data, SPEC, "x.tif"), TURNED)
    if features.check("avif"):
        plain, turned = (saved(Image.fromarray(STORED), "AVIF", exif=b) for b in (b"", exif))
        np.testing.assert_array_equal(folders.decoded(turned, SPEC, ""), np.rot90(folders.decoded(plain, SPEC, ""), -1))
    clear = Image.fromarray(np.zeros((16, 16), np.uint8)).convert("P")
    assert folders.decoded(saved(clear, "GIF", transparency=0), SPEC, "x.gif").min() == 255
    alpha = Image.fromarray(np.zeros((16, 16, 4), np.uint8))
    assert folders.decoded(saved(alpha, "TIFF"), SPEC, "x.tif").min() == 255
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) << 8
    np.testing.assert_array_equal(folders.decoded(saved(Image.fromarray(deep), "TIFF"), SPEC, "")[..., 0], deep >> 8)
    icc = rgb_profile(SRGB, 1.0)
    grey = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None] * 17, (16, 16, 3)).copy()
    made = folders.decoded(saved(Image.fromarray(grey), "TIFF", icc_profile=icc), SPEC, "x.tif")
    assert np.abs(made - converted(grey, SRGB, 1.0)).max() <= 2


def test_sizes_are_those_of_the_upright_images(tmp_path: Path) -> None:
    exif = b"Exif\x00\x00" + block("<", [short("<", 6)])
    paths = [tmp_path / "upright.png", tmp_path / "turned.jpg", tmp_path / "turned.tif"]
    Image.new("RGB", (10, 20)).save(paths[0])
    Image.new("RGB", (20, 10)).save(paths[1], exif=exif)
    Image.new("RGB", (20, 10)).save(paths[2], tiffinfo={274: 8})
    assert folders.read_images(paths, size=None, resize=Resize()).shape == (3, 20, 10, 3)


@pytest.mark.parametrize(
    ("fmt", "options"),
    [("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("JPEG2000", {}), ("PCX", {})],
)
def test_files_cut_short_are_refused_by_name(fmt: str, options: dict[str, object]) -> None:
    data = saved(Image.fromarray(STORED), fmt, **options)
    assert folders.decoded(data, SPEC, "").shape == (16, 16, 3)
    for size in range(1, len(data) - 1, 17):
        with pytest.raises(DataError, match=r"photo\.x: not a readable image"):
            folders.decoded(data[:size], SPEC, "photo.x")


def test_tracks_in_file_names_stay_together(tmp_path: Path) -> None:
    names = [f"{track:05d}_{frame:05d}.png" for track in range(5) for frame in range(3)]
    data = load(fill(tmp_path / "signs", names=names))
    groups = [set(split.group.tolist()) for split in (data.train, data.select, data.calibrate, data.test)]
    assert [len(group) for group in groups] == [4, 2, 2, 2]
    assert len(set.union(*groups)) == 10


def test_nearly_the_same_images_stay_together(tmp_path: Path) -> None:
    root = fill(tmp_path / "plain", names=numbered(8))
    first = np.asarray(Image.open(root / "stop" / "photo0.png")).astype(int)
    for i in range(8):
        Image.fromarray((first + i % 2).clip(0, 255).astype(np.uint8)).save(root / "stop" / f"copy{i}.png")
    data = load(root)
    splits = (data.train, data.select, data.calibrate, data.test)
    assert [len(np.unique(s.group[s.y == 0])) for s in splits] == [len(np.unique(s.group[s.y == 1])) for s in splits]
    assert sum((split.y == 0).sum() for split in splits) == 16


def test_flat_images_of_different_brightness_are_not_the_same(tmp_path: Path) -> None:
    x = np.full((3, 16, 16, 3), [[[[10]]], [[[200]]], [[[11]]]], np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(x, paths, strict=True):
        Image.fromarray(image).save(path)
    thumbs = folders.thumbnails(paths)
    group = folders.joined_groups(thumbs, np.zeros(3, int), np.arange(3))
    assert group[0] == group[2] != group[1]
    others = folders.joined_groups(thumbs, np.arange(3), np.arange(3))  # other labels are other images
    assert len(set(others.tolist())) == 3


def test_training_images_that_the_test_part_has_are_left_out(parts: Path) -> None:
    (parts / "train" / "stop" / "again.png").write_bytes((parts / "test" / "stop" / "photo2.png").read_bytes())
    data = load(parts)
    assert not images(data.train, data.select, data.calibrate) & images(data.test)
    assert data.notes == ("1 training images are left out, as the test part has nearly the same",)


def test_at_most_so_many_images_of_each_class(parts: Path) -> None:
    data = load(parts, images_per_class=4)
    assert len(data.test) == 8
    assert len(data.train) + len(data.select) + len(data.calibrate) == 8


def test_progress_ends_at_the_number_of_images(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    load(fill(tmp_path / "plain", names=numbered(40)), progress=lambda *step: told.append(step))
    assert told == [("reading images", 64, 80), ("reading images", 80, 80)]


def broken(root: Path, case: str) -> tuple[Path, str]:
    """A folder with one thing wrong, and what must be said of it."""
    if case == "missing":
        return root / "nowhere", "nowhere: no such folder"
    if case == "no test":
        for path in sorted((root / "test").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (root / "test").rmdir()
        return root, "has train/ but no test/"
    if case == "empty class":
        (root / "train" / "bare").mkdir()
        return root, "bare: class has no images"
    if case == "unknown class":
        (root / "test" / "bare").mkdir()
        return root, "bare: class has no folder in"
    if case == "text":
        (root / "test" / "stop" / "notes.txt").write_text("not an image")
        return root, r"notes\.txt: not a readable image"
    if case == "corrupt":
        path = root / "train" / "stop" / "photo3.png"
        path.write_bytes(path.read_bytes()[:120])
        return root, r"photo3\.png: not a readable image"
    if case == "one class":
        return fill_one(root / "single"), "1 folder.s. of a class"
    return fill(root / "few", names=numbered(2)), "class 'stop' has . group.s. of images"


def fill_one(root: Path) -> Path:
    (root / "stop").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    "case", ["missing", "no test", "empty class", "unknown class", "text", "corrupt", "one class", "few"]
)
def test_what_is_wrong_is_named(parts: Path, case: str) -> None:
    root, message = broken(parts, case)
    with pytest.raises(DataError, match=message):
        load(root, size=16)


def test_images_that_would_not_fit_are_refused_before_they_are_read(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "IN_MEMORY", 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"GB are free.*--size"):
        load(parts, size=16)

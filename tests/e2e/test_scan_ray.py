"""`palisade scan` on Ray: the plain scan's report, also where a worker, and then the driver, is killed."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.ray_scans import Scans, kill_driver, rows_by_path, wait_for_rows, workers
from tests.e2e.test_pull import running
from tests.gateway.server import free_port
from tests.gateway.tiny import SIZE, encode, write_bundle

pytest.importorskip("ray")
pytestmark = pytest.mark.e2e

RAY = ("--ray", "local", "--workers", 2)


def write_images(folder: Path, count: int) -> Path:
    """Half of the images loose, half of them in two shards, the second of which is cut off."""
    rng = np.random.default_rng(0)
    pixels = np.tile(rng.integers(0, 200, (count, 1, 1, 3), dtype=np.uint8), (1, SIZE, SIZE, 1))
    pixels[::3, 4:10, 4:10] = (0, 0, 255)
    images = [encode(image) for image in pixels]
    folder.mkdir()
    for number, data in enumerate(images[::2]):
        (folder / f"{number:05d}.png").write_bytes(data)
    for shard, inside in {"a.tar": images[1::4], "b.tar": images[3::4]}.items():
        with tarfile.open(folder / shard, "w") as tar:
            for number, data in enumerate(inside):
                info = tarfile.TarInfo(f"{number:05d}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    cut = folder / "b.tar"
    cut.write_bytes(cut.read_bytes()[:-15_000])
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    return Scans(tmp_path, write_bundle(tmp_path / "models" / "tiny"))


def test_a_killed_worker_and_a_killed_driver_lose_no_image_and_judge_none_twice(scans: Scans, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2000)
    plain, out = tmp_path / "plain.jsonl", tmp_path / "ray.jsonl"
    assert scans.run(plain, images) == 1
    driver = scans.start(out, images, *RAY, "--batch", 8)
    wait_for_rows(driver, out, 100)
    workers(driver)[0].kill()
    wait_for_rows(driver, out, 500)
    kill_driver(driver)
    left = len(rows_by_path(out))
    assert scans.run(out, images, *RAY, "--batch", 8) == 1
    assert left < len(rows_by_path(out))
    assert rows_by_path(out) == rows_by_path(plain)
    assert rows_by_path(out)[f"{images}/b.tar"]["error"] == "damaged_shard"


@pytest.fixture
def bucket(tmp_path: Path, scans: Scans) -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    scans.environment |= variables
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with running([sys.executable, "-m", "moto.server", "-p", str(port)], url):
            files = s3fs.S3FileSystem(skip_instance_cache=True)
            files.mkdir("archive")
            files.put(str(write_images(tmp_path / "images", 80)) + "/", "archive/2026", recursive=True)
            yield "s3://archive/2026"


def test_an_object_store_gives_what_its_folder_gives(scans: Scans, bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    plain, stored, out = (tmp_path / f"{name}.jsonl" for name in ("plain", "stored", "ray"))
    assert scans.run(plain, folder) == 1
    assert scans.run(stored, bucket) == 1
    assert scans.run(out, bucket, *RAY) == 1
    assert rows_by_path(out) == rows_by_path(stored)
    for path, row in rows_by_path(plain).items():
        other = rows_by_path(stored)[path.replace(str(folder), bucket)]
        for name in set(row) - {"path", "mtime", "detail"}:
            assert other[name] == row[name], (path, name)

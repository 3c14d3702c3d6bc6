"""`palisade scan` on Ray against the plain scan: same report, although a worker and then the driver are killed.

    python -m benchmarks.scan_ray --images 20000 --json FILE

The images are those of a data set of `PALISADE_DATA` (all splits, in order, again from the start where they run out),
as PNG in shards of 500. One process with one thread judges them first, then two workers of one thread each; one of them
is killed (SIGKILL) after a quarter of the rows, the driver after half, and a second run of the same command ends it.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from tests.e2e.ray_scans import Scans, kill_driver, rows_by_path, wait_for_rows, workers
from tests.gateway.tiny import encode

SHARD = 500
WORKERS = 2


def write_shards(folder: Path, images: int, data: Path) -> None:
    """Shards of `images` PNG files from the arrays `x_...` (N, H, W, 3) of `data`."""
    with np.load(data, allow_pickle=False) as file:
        arrays = [file[name] for name in sorted(file.files) if name.startswith("x_")]
    folder.mkdir()
    every = (image for _ in count() for array in arrays for image in array)
    for first in range(0, images, SHARD):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as tar:
            for number, image in enumerate(islice(every, min(SHARD, images - first)), start=first):
                png = encode(image)
                info = tarfile.TarInfo(f"{number:06d}.png")
                info.size = len(png)
                tar.addfile(info, io.BytesIO(png))


def compare(plain: Path, ray: Path) -> dict[str, Any]:
    """How the two reports differ; fails where an image is in one alone, or twice in one."""
    expected, found = rows_by_path(plain), rows_by_path(ray)
    assert expected.keys() == found.keys()
    numbers = ("probability", "p_value")
    decided = [{name: row[name] for name in row if name not in numbers} for row in expected.values()]
    again = [{name: found[path][name] for name in found[path] if name not in numbers} for path in expected]
    gaps = [abs(expected[path][name] - found[path][name]) for path in expected for name in numbers]
    return {
        "rows": len(found),
        "rows_that_differ_otherwise": sum(a != b for a, b in zip(decided, again, strict=True)),
        "rows_identical": sum(expected[path] == found[path] for path in expected),
        "largest_difference_of_a_probability_or_p_value": max(gaps),
        "flagged": sum(bool(row["flagged"]) for row in found.values()),
    }


def measure(folder: Path, images: int, data: Path, models: Path, nice: int) -> dict[str, Any]:
    shards, plain, out = folder / "shards", folder / "plain.jsonl", folder / "ray.jsonl"
    write_shards(shards, images, data)
    scans = Scans(folder, models, nice=nice)
    start = time.monotonic()
    assert scans.run(plain, shards) == 0
    seconds = {"plain": time.monotonic() - start}
    options = ("--ray", "local", "--workers", WORKERS)
    start = time.monotonic()
    driver = scans.start(out, shards, *options)
    wait_for_rows(driver, out, 1)
    seconds["ray_until_first_rows"] = time.monotonic() - start
    wait_for_rows(driver, out, images // 4)
    workers(driver)[0].kill()
    wait_for_rows(driver, out, images // 2)
    kill_driver(driver)
    at_kill = len(rows_by_path(out))
    seconds["ray_until_killed"] = time.monotonic() - start
    start = time.monotonic()
    assert scans.run(out, shards, *options) == 0
    seconds["ray_second_run"] = time.monotonic() - start
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    return {"images": images, "workers": WORKERS, "rows_at_the_kill": at_kill, "seconds": rounded} | compare(plain, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--data", default="gtsrb32")
    parser.add_argument("--models", type=Path, default=Path("models/gtsrb"))
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = Path(os.environ["PALISADE_DATA"], f"{arguments.data}.npz")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.images, data, arguments.models.absolute(), arguments.nice)
    print(figures)
    if arguments.json is not None:
        note = "p-values and probabilities can differ in the last bits: batches are made of other images after a kill"
        record(arguments.json, "palisade scan on Ray", {"seed": None, "note": note, **figures})


if __name__ == "__main__":
    main()

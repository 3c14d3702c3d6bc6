"""Where an evaluation keeps what it has done: attacked images and answers by chunk, and finished units.

A chunk is a file of arrays without objects, written whole or not at all, so that a killed evaluation goes on where it
was. Chunks are named by what they depend on: another bundle, data set or setting never finds them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import TrainingError

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]


def digest(content: object) -> str:
    """A short hash of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Store:
    """The work folder of one evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise TrainingError(f"{folder} is a file; choose another --work") from None

    def rows(
        self,
        name: str,
        key: str,
        count: int,
        size: int,
        make: Callable[[int, int], Arrays],
        progress: Progress = lambda _done, _total: None,
    ) -> Arrays:
        """Arrays of `count` rows, in chunks of `size`: `make(start, stop)` makes those that are not there.

        A chunk may be longer than is asked for; it is then cut.
        """
        parts, folder = [], self._chunks(name, key)
        for start, stop in _spans(count, size):
            found = self._read(folder, start, stop)
            if found is None:
                found = make(start, stop)
                self._write(folder / f"{start}-{stop}.npz", found)
            parts.append({field: array[: stop - start] for field, array in found.items()})
            progress(stop, count)
        return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}

    def result(self, unit: str) -> dict[str, Any] | None:
        """What was written of a finished unit; None if there is none that can be read."""
        try:
            found = json.loads(self._result(unit).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def finish(self, unit: str, result: dict[str, Any]) -> None:
        """Write a finished unit."""
        path = self._result(unit)
        path.parent.mkdir(exist_ok=True)
        replace_text(path, json.dumps(result, indent=1) + "\n")

    def _result(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit}.json"

    def _chunks(self, name: str, key: str) -> Path:
        return self.folder / f"{name}-{key}"

    def _read(self, folder: Path, start: int, stop: int) -> Arrays | None:
        for path in folder.glob(f"{start}-*.npz"):
            if _length(path) < stop - start:
                continue
            try:
                with np.load(path, allow_pickle=False) as file:
                    return {field: file[field] for field in file.files}
            except (OSError, ValueError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)
        return None

    def _write(self, path: Path, arrays: Arrays) -> None:
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with draft.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, max(count, 1), size):
        yield start, min(start + size, count)


def _length(path: Path) -> int:
    start, _, stop = path.stem.partition("-")
    return int(stop) - int(start)

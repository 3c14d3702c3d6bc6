"""The store of an evaluation: attacked images and answers by chunk, and finished units.

A chunk is a file of arrays without objects, written whole or not at all, so that a killed evaluation resumes
there. Chunks are named by what they depend on: another bundle, data set or setting never finds them.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gateway.atomic import replacing, write_text
from training.errors import TrainingError
from training.util.signatures import Progress, silent

Arrays = dict[str, np.ndarray]


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
        progress: Progress = silent,
    ) -> Arrays:
        """Arrays of `count` rows: `make(start, stop)` makes those that are not there, in chunks of `size`.

        A chunk that is there may be of any length, as one that an evaluation with fewer rows ended with.
        """
        parts, folder, start = list[Arrays](), self._chunks(name, key), 0
        while start < count or not parts:
            found, stop = self._longest(folder, start), min(start + size, count)
            if found is None:
                found = make(start, stop)
                self._write(folder / f"{start}-{stop}.npz", found)
            else:
                stop = min(start + len(next(iter(found.values()))), count)
            parts.append({field: array[: stop - start] for field, array in found.items()})
            progress(stop, count)
            start = stop
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
        write_text(path, json.dumps(result, indent=1) + "\n")

    def _result(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit}.json"

    def _chunks(self, name: str, key: str) -> Path:
        return self.folder / f"{name}-{key}"

    def _longest(self, folder: Path, start: int) -> Arrays | None:
        """The longest chunk from `start` that can be read; None if there is none with a row."""
        for path in sorted(folder.glob(f"{start}-*.npz"), key=_length, reverse=True):
            if _length(path) == 0:
                continue
            try:
                with np.load(path, allow_pickle=False) as file:
                    return {field: file[field] for field in file.files}
            except (OSError, ValueError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)
        return None

    def _write(self, path: Path, arrays: Arrays) -> None:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _length(path: Path) -> int:
    start, _, stop = path.stem.partition("-")
    return int(stop) - int(start)

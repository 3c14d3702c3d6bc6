"""Rules beside a bundle's calibration (`gateway.core.rules`), given to a bundle that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gateway.core.loading import Bundle, load_bundle, write_manifest
from gateway.core.manifest import Manifest
from training.bundling.calibrate import CALIBRATION
from training.errors import TrainingError


def revised(bundle: Bundle, version: str | None) -> Manifest:
    """The bundle's manifest, stating what it stated, with another `version`; `TrainingError` if it is none."""
    stated = bundle.manifest.model_dump(exclude_unset=True)
    try:
        return Manifest.model_validate(stated | {"version": version or bundle.version})
    except ValidationError:
        raise TrainingError(f"--version {version}: expected three numbers, or a suffix too, as 1.4.1-rc1") from None


def add_rule(folder: Path, manifest: Manifest, key: str, arrays: dict[str, np.ndarray], **rule: Any) -> None:
    """Give the bundle in `folder` this `manifest`, with a `rule` and its `arrays` in the calibration `key`."""
    add_arrays(folder / CALIBRATION, key, arrays)
    calibrations = [each.model_copy(update=rule) if each.key == key else each for each in manifest.calibrations]
    write_manifest(folder, manifest.model_copy(update={"calibrations": calibrations}), as_read=True)
    load_bundle(folder)


def add_arrays(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Put arrays of the calibration `key` into the file `path`, in place of those of the same names."""
    with np.load(path, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    np.savez(path, allow_pickle=False, **kept | {f"{key}/{name}": array for name, array in arrays.items()})

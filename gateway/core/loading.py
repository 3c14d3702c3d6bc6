"""A bundle on disk: what it must hold, its hashes, and how it is read and written.

The gateway refuses a folder that does not match its manifest, and names the file.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from gateway.atomic import write_text
from gateway.core.manifest import CARD, MANIFEST, SCHEMA_VERSION, SIGNATURE, Calibration, Manifest, graphs_sha256
from gateway.errors import BundleError


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked: manifest, folder, calibration arrays and robustness card in memory."""

    path: Path
    manifest: Manifest
    arrays: dict[str, np.ndarray]
    robustness: dict[str, Any] | None = None
    manifest_sha256: str = ""
    """SHA-256 of the manifest's bytes as they were read; the manifest states that of every other file."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    def calibration(self, provider: str, precision: str = "fp32") -> Calibration:
        """The calibration of `provider` and `precision`; `BundleError` if the bundle has none."""
        for calibration in self.manifest.calibrations:
            if (calibration.provider, calibration.precision) == (provider, precision):
                return calibration
        have = ", ".join(c.key for c in self.manifest.calibrations)
        raise BundleError(
            f"{self.path / MANIFEST}: no calibration for {provider}-{precision} (has {have}); "
            "`palisade calibrate` makes one where it will serve"
        )

    def card(self) -> dict[str, Any] | None:
        """The robustness card whose hash was checked, or None if the bundle ships none."""
        return self.robustness


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of `folder` but manifest and signature, by POSIX path relative to it."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: file_sha256(folder / name) for name in names if name not in (MANIFEST, SIGNATURE)}


def read_manifest(folder: Path) -> Manifest:
    """Parse and validate `folder/manifest.json`; `BundleError` names the field that is wrong."""
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest, and the SHA-256 of the bytes that it was parsed from."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder")
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
        _check_version(path, text)
        return Manifest.model_validate_json(text), hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        raise BundleError(f"{path}: missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s))") from None
    except (UnicodeDecodeError, OSError) as error:
        raise BundleError(f"{path}: unreadable: {error}") from None


def _check_version(path: Path, text: str) -> None:
    """Refuse a manifest of another schema version by its version, not by the first field that it lacks."""
    try:
        version = json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version {version!r}: this release reads version {SCHEMA_VERSION}; build the bundle again "
            "(`palisade build`, with `--networks` to keep its networks)"
        )


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and check schema, hashes and calibration arrays.

    Raises `BundleError` naming the first file that is missing, extra, altered or inconsistent. The graph's signature
    is checked by the engine, which opens the graph anyway (`gateway.core.engine`).
    """
    folder = Path(folder)
    manifest, digest = _read_manifest(folder)
    found = hash_files(folder)
    for name, expected in manifest.files.items():
        if name not in found:
            raise BundleError(f"{folder / name}: listed in the manifest but missing")
        if found[name] != expected:
            raise BundleError(f"{folder / name}: SHA-256 is {found[name]}, the manifest states {expected}")
    extra = sorted(set(found) - set(manifest.files))
    if extra:
        raise BundleError(f"{folder / extra[0]}: not listed in the manifest")
    arrays: dict[str, np.ndarray] = {}
    for calibration in manifest.calibrations:
        if calibration.graphs_sha256 != graphs_sha256(manifest.files, calibration.precision):
            raise BundleError(f"{folder / calibration.file}: calibration {calibration.key} belongs to another graph")
        arrays |= _calibration_arrays(folder / calibration.file, calibration, manifest)
    return Bundle(folder, manifest, arrays, robustness=_card(folder / CARD, manifest), manifest_sha256=digest)


def _hashed(path: Path, manifest: Manifest) -> bytes:
    """The bytes of a file, which are those that the manifest states also if the file has been changed since."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.files.get(path.name):
        raise BundleError(f"{path}: changed while the bundle was read")
    return data


def _card(path: Path, manifest: Manifest) -> dict[str, Any] | None:
    if path.name not in manifest.files:
        return None
    try:
        card = json.loads(_hashed(path, manifest).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: unreadable card: {error}") from None
    if not isinstance(card, dict):
        raise BundleError(f"{path}: the card is not a JSON object")
    return card


def _calibration_arrays(path: Path, calibration: Calibration, manifest: Manifest) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with np.load(io.BytesIO(_hashed(path, manifest)), allow_pickle=False) as file:
            for name, shape in _shapes(calibration, manifest).items():
                array = file[f"{calibration.key}/{name}"]
                if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                    raise BundleError(f"{path}: array {name!r} is not finite float of shape {shape}")
                if name.endswith("_weights"):
                    if (array <= 0).any() or (array > 1).any():
                        raise BundleError(f"{path}: array {name!r} is not in (0, 1]")
                elif (np.diff(array, axis=0) < 0).any():
                    raise BundleError(f"{path}: array {name!r} is not ascending")
                arrays[f"{calibration.key}/{name}"] = array
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 (of NumPy, of archives, of compression: each has errors of its own)
        raise BundleError(f"{path}: unreadable calibration: {error}") from None
    return arrays


def _shapes(calibration: Calibration, manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shapes of a calibration's arrays, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "components": (calibration.n_select, len(manifest.scores)),
        "fisher": (calibration.n_tails or calibration.n_select,),
        "fused": (calibration.n,),
        "layers": (calibration.n_select, len(manifest.layers)),
    }
    if calibration.n_tails is not None:
        shapes["guard"] = (calibration.n_tails,)
    if calibration.cascade:
        shapes["cascade"] = (calibration.cascade.n_on,)
    if calibration.counted == "groups":
        shapes["fused_weights"] = (calibration.n,)
        if calibration.cascade:
            shapes["cascade_weights"] = (calibration.cascade.n_on,)
    if calibration.kinds:
        shapes |= {"kinds": (calibration.kinds.n, 2), "kind_weights": (calibration.kinds.n, 2)}
    if calibration.votes:
        shapes |= {"votes": (calibration.votes.n,), "vote_weights": (calibration.votes.n,)}
    return shapes


def write_manifest(folder: Path, manifest: Manifest, *, as_read: bool = False) -> None:
    """Write `manifest.json` (atomically) with the hashes of the files that lie in `folder` now.

    `as_read`: of a manifest that was read from a file, what that did not state is not stated now either.
    """
    manifest = manifest.model_copy(update={"files": hash_files(folder)})
    Manifest.model_validate(manifest.model_dump())
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1, exclude_unset=as_read) + "\n")

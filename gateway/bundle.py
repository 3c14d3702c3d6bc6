"""The bundle: the one thing that crosses from training to serving (docs/architecture.md, "Bundle").

A bundle is a folder with a `manifest.json`, the defence graph, the calibration arrays, a robustness card and samples.
This module owns the manifest's schema and refuses folders that don't keep it, naming the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CARD = "card.json"
MAX_BUNDLE_BYTES = 25_000_000

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resize(_Strict):
    """How an image of another size becomes the network's: `stretch` both sides, or scale and `center_crop`."""

    rule: Literal["stretch", "center_crop"] = "stretch"
    filter: Literal["bilinear", "bicubic", "lanczos", "box"] = "bilinear"


class InputSpec(_Strict):
    """The image the graph takes: float32 (N, C, H, W), pixels in [0, 1], RGB or grey."""

    height: int = Field(ge=8, le=1024)
    width: int = Field(ge=8, le=1024)
    channels: Literal[1, 3] = 3
    resize: Resize = Resize()


class TensorSpec(_Strict):
    """One graph input or output; a string in `shape` is a dynamic axis (`N` is the batch)."""

    name: str
    dtype: Literal["float32", "float16", "uint8", "int64", "bool"]
    shape: list[int | str]


class GraphSpec(_Strict):
    file: Literal["defense.onnx"] = "defense.onnx"
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class MonitoredLayer(_Strict):
    """A layer whose neurons (channels) are watched; `sensitive` are the top ones by neuron sensitivity."""

    name: str
    channels: int = Field(ge=1)
    sensitive: list[int]


class Cutoff(_Strict):
    """Flag when p <= `p_cutoff`; at confidence `confidence` the false-positive rate is then at most `alpha`."""

    alpha: Probability
    p_cutoff: float = Field(ge=0.0, le=1.0)
    confidence: Probability


class Calibration(_Strict):
    """Benign scores of one provider and precision, bound to the graph they came from.

    The arrays are in `file` under `<provider>-<precision>/<array>`: `components` (n_select, S) ascending by column,
    `fused` (n,) ascending, `layers` (n_select, L) ascending by column.
    """

    provider: Literal["cpu", "cuda"]
    precision: Literal["fp32", "fp16"]
    graph_sha256: Sha256
    file: Literal["calibration.npz"] = "calibration.npz"
    fused: list[str] = Field(min_length=1)
    cutoffs: list[Cutoff] = Field(min_length=1)
    n: int = Field(ge=20)
    groups: int = Field(ge=2)
    n_select: int = Field(ge=20)
    design_effect: float = Field(ge=1.0)
    roa_threshold: float
    date: date

    @property
    def key(self) -> str:
        return f"{self.provider}-{self.precision}"


class Policy(_Strict):
    """Defaults of the gateway for this bundle: the action, the flag's alpha and the neutralisation gate's alpha."""

    action: Literal["observe", "sanitize", "block"] = "sanitize"
    alpha: Probability = 0.01
    gate_alpha: Probability = 0.05


class Manifest(_Strict):
    schema_version: Literal[1] = 1
    name: Name
    version: Version
    description: str = ""
    created: date
    classes: list[str] = Field(min_length=2)
    input: InputSpec
    graph: GraphSpec
    scores: list[str] = Field(min_length=1)
    layers: list[MonitoredLayer] = Field(min_length=1)
    companion: bool
    calibrations: list[Calibration] = Field(min_length=1)
    policy: Policy = Policy()
    training: dict[str, Any] = {}
    data: dict[str, Any] = {}
    software: dict[str, str] = {}
    files: dict[str, Sha256]

    @field_validator("files")
    @classmethod
    def _relative_paths(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or name == MANIFEST:
                raise ValueError(f"file name {name!r} must be relative, inside the bundle and not the manifest")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        inputs = {t.name: t.shape for t in self.graph.inputs}
        if inputs != expected_inputs(self.input):
            raise ValueError(f"graph.inputs are {inputs}, expected {expected_inputs(self.input)}")
        for tensor in (*self.graph.inputs, *self.graph.outputs):
            if tensor.dtype != "float32":
                raise ValueError(f"graph tensor {tensor.name!r} is {tensor.dtype}, expected float32")
        outputs = {t.name: t for t in self.graph.outputs}
        expected = expected_outputs(self)
        for name, shape in expected.items():
            if name not in outputs:
                raise ValueError(f"graph.outputs lacks {name!r}")
            if outputs[name].shape != shape:
                raise ValueError(f"graph output {name!r} has shape {outputs[name].shape}, expected {shape}")
        for calibration in self.calibrations:
            unknown = set(calibration.fused) - set(self.scores)
            if unknown:
                raise ValueError(f"calibration {calibration.key} fuses unknown scores {sorted(unknown)}")
            alphas = {cutoff.alpha for cutoff in calibration.cutoffs}
            if not {self.policy.alpha, self.policy.gate_alpha} <= alphas:
                raise ValueError(f"calibration {calibration.key} has no cutoff for the policy's alphas")
        if self.graph.file not in self.files:
            raise ValueError(f"files lacks {self.graph.file}")
        return self


def expected_inputs(spec: InputSpec) -> dict[str, list[int | str]]:
    """Shapes of the graph's inputs: `pixels` in [0, 1], and `mask` in {0, 1} of what is inpainted first."""
    h, w = spec.height, spec.width
    return {"pixels": ["N", spec.channels, h, w], "mask": ["N", h, w]}


def expected_outputs(manifest: Manifest) -> dict[str, list[int | str]]:
    """Shapes that the graph's outputs must have, by name (docs/architecture.md, "Defence graph")."""
    h, w, c = manifest.input.height, manifest.input.width, manifest.input.channels
    outputs: dict[str, list[int | str]] = {
        "logits": ["N", len(manifest.classes)],
        "saliency": ["N", h, w],
        "roi": ["N", h, w],
        "roa": ["N", h, w],
        "roa_score": ["N"],
        "neutral_pixels": ["N", c, h, w],
        "layer_deviation": ["N", len(manifest.layers)],
        "scores": ["N", len(manifest.scores)],
    }
    if manifest.companion:
        outputs["companion_logits"] = ["N", len(manifest.classes)]
    return outputs


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked: manifest, folder, calibration arrays and robustness card in memory."""

    path: Path
    manifest: Manifest
    arrays: dict[str, np.ndarray]
    robustness: dict[str, Any] | None = None

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
        raise BundleError(f"{self.path / MANIFEST}: no calibration for {provider}-{precision} (has {have})")

    def card(self) -> dict[str, Any] | None:
        """The robustness card whose hash was checked, or None if the bundle ships none."""
        return self.robustness


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of `folder` but the manifest, by POSIX path relative to it."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name: file_sha256(folder / name) for name in names if name != MANIFEST}


def read_manifest(folder: Path) -> Manifest:
    """Parse and validate `folder/manifest.json`; `BundleError` says which field is wrong."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder")
    try:
        return Manifest.model_validate_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']} ({error.error_count()} problem(s))") from None
    except (UnicodeDecodeError, OSError) as error:
        raise BundleError(f"{path}: unreadable: {error}") from None


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and check schema, hashes, size and calibration arrays.

    Raises `BundleError` naming the first file that is missing, extra, altered or inconsistent. The graph's signature
    is checked by the engine, which opens the graph anyway (`gateway.engine`).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    found = hash_files(folder)
    for name, expected in manifest.files.items():
        if name not in found:
            raise BundleError(f"{folder / name}: listed in the manifest but missing")
        if found[name] != expected:
            raise BundleError(f"{folder / name}: SHA-256 is {found[name]}, the manifest says {expected}")
    extra = sorted(set(found) - set(manifest.files))
    if extra:
        raise BundleError(f"{folder / extra[0]}: not listed in the manifest")
    total = sum((folder / name).stat().st_size for name in found)
    if total > MAX_BUNDLE_BYTES:
        raise BundleError(f"{folder}: {total} bytes, a bundle may have {MAX_BUNDLE_BYTES}")
    arrays: dict[str, np.ndarray] = {}
    for calibration in manifest.calibrations:
        if calibration.graph_sha256 != manifest.files[manifest.graph.file]:
            raise BundleError(f"{folder / calibration.file}: calibration {calibration.key} belongs to another graph")
        arrays |= _calibration_arrays(folder / calibration.file, calibration, manifest)
    return Bundle(path=folder, manifest=manifest, arrays=arrays, robustness=_card(folder / CARD))


def _card(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: unreadable card: {error}") from None
    if not isinstance(card, dict):
        raise BundleError(f"{path}: the card is not a JSON object")
    return card


def _calibration_arrays(path: Path, calibration: Calibration, manifest: Manifest) -> dict[str, np.ndarray]:
    shapes = {
        "components": (calibration.n_select, len(manifest.scores)),
        "fused": (calibration.n,),
        "layers": (calibration.n_select, len(manifest.layers)),
    }
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name, shape in shapes.items():
                array = file[f"{calibration.key}/{name}"]
                if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                    raise BundleError(f"{path}: array {name!r} is not finite float of shape {shape}")
                if (np.diff(array, axis=0) < 0).any():
                    raise BundleError(f"{path}: array {name!r} is not ascending")
                arrays[f"{calibration.key}/{name}"] = array
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: unreadable calibration: {error}") from None
    return arrays


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` (atomically) with the hashes of the files that lie in `folder` now."""
    manifest = manifest.model_copy(update={"files": hash_files(folder)})
    Manifest.model_validate(manifest.model_dump())
    temporary = folder / (MANIFEST + ".part")
    temporary.write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    temporary.replace(folder / MANIFEST)

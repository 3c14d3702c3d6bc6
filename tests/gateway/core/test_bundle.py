from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gateway.core import loading
from gateway.core.engine import Engine
from gateway.core.loading import hash_files, load_bundle
from gateway.core.manifest import MANIFEST, graphs_sha256
from gateway.errors import BundleError
from tests.gateway.tiny import tiny_graph, write_bundle
from training.export.parts import split_parts

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


def edit_manifest(folder: Path, edit: Edit, *, rehash: bool = False) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    if rehash:
        manifest["files"] = hash_files(folder)
        manifest["calibrations"][0]["graphs_sha256"] = graphs_sha256(manifest["files"])
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def nothing(_: dict[str, Any]) -> None:
    pass


def test_a_sound_bundle_loads(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert (bundle.name, bundle.version) == ("tiny", "1.0.0")
    assert bundle.arrays["cpu-fp32/fused"].shape == (400,)
    assert bundle.card() is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema_version=1), "schema_version 1: this release reads version 3"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(name="../evil"), "name"),
        (lambda m: m.update(version="1" * 5000 + ".0.0"), "version"),
        (lambda m: m.update(version="1.0.0-a.part"), "may not end in .part"),
        (lambda m: m.update(name="tiny.part"), "may not end in .part"),
        (lambda m: m.update(classes=["one"]), "classes"),
        (lambda m: m["files"].update({"../outside": "0" * 64}), "inside the bundle"),
        (lambda m: m["files"].update({"./manifest.json": "0" * 64}), "inside the bundle"),
        (lambda m: m["files"].update({"samples//a.png": "0" * 64}), "inside the bundle"),
        (lambda m: m["files"].pop("defense.onnx"), "files lacks defense.onnx"),
        (lambda m: m["graphs"].pop("verdict"), "graphs lacks the part 'verdict'"),
        (lambda m: m["graphs"].pop("screen"), "belong together"),
        (lambda m: m["graphs"]["verdict"].update(file="screen.onnx"), "graphs.verdict.file"),
        (lambda m: m["graphs"]["full"]["outputs"].pop(0), "graphs.full.outputs lacks 'logits'"),
        (lambda m: m["graphs"]["full"]["outputs"][0].update(shape=["N", 4]), "'logits' has shape"),
        (lambda m: m["graphs"]["full"]["inputs"].pop(1), "graphs.full.inputs"),
        (lambda m: m["graphs"]["screen"]["inputs"][0].update(dtype="uint8"), "'pixels' is uint8"),
        (lambda m: m.update(buckets=[1, 4, 2]), "buckets must ascend"),
        (lambda m: m.update(screen_scores=["margin_drop", "nothing"]), "unknown scores"),
        (lambda m: m["calibrations"][0].update(fused=["nothing"]), "unknown scores"),
        (lambda m: m["calibrations"][0]["guard"].update(score="nothing"), "unknown scores"),
        (lambda m: m["calibrations"][0]["cascade"].update(scores=["unused"]), "the screen does not compute"),
        (lambda m: m["calibrations"][0]["cascade"]["cutoffs"].pop(0), "no cutoff"),
        (lambda m: m["policy"].update(alpha=0.02), "no cutoff"),
        (lambda m: m["calibrations"][0].update(graphs_sha256="0" * 64), "another graph"),
        (lambda m: m["calibrations"][0].update(roa_threshold=math.nan), "roa_threshold: .*finite"),
        (lambda m: m["calibrations"][0]["cascade"].update(threshold=math.inf), "threshold: .*finite"),
    ],
)
def test_manifests_are_refused_by_name(folder: Path, edit: Edit, message: str) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(BundleError, match=message) as error:
        load_bundle(folder)
    assert str(folder) in error.value.detail


def test_missing_folder_and_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        load_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        load_bundle(tmp_path)


def test_altered_missing_and_extra_files_are_named(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.bin: not listed"):
        load_bundle(folder)
    (folder / "extra.bin").unlink()
    data = (folder / "defense.onnx").read_bytes()
    (folder / "defense.onnx").write_bytes(data[:-1] + b"!")
    with pytest.raises(BundleError, match=r"defense\.onnx: SHA-256"):
        load_bundle(folder)
    (folder / "defense.onnx").unlink()
    with pytest.raises(BundleError, match=r"defense\.onnx: listed .* missing"):
        load_bundle(folder)


def test_the_card_is_the_one_that_was_checked(folder: Path) -> None:
    (folder / "card.json").write_text('{"figures": {}}')
    edit_manifest(folder, nothing, rehash=True)
    bundle = load_bundle(folder)
    (folder / "card.json").write_text("altered since")
    assert bundle.card() == {"figures": {}}


DEEP = b"[" * 200_000


def test_a_manifest_nested_too_deep_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(DEEP)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        load_bundle(folder)


@pytest.mark.parametrize("content", [b'{"figures"', b"[1]", b"\xff\xfe", DEEP])
def test_a_card_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / "card.json").write_bytes(content)
    edit_manifest(folder, nothing, rehash=True)
    with pytest.raises(BundleError, match=r"card\.json: "):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "cpu-fp32/fused": a["cpu-fp32/fused"][::-1]}, "'fused' is not ascending"),
        (lambda a: {**a, "cpu-fp32/fused": a["cpu-fp32/fused"][1:]}, "'fused' is not finite float of shape"),
        (lambda a: {**a, "cpu-fp32/layers": a["cpu-fp32/layers"] * np.nan}, "'layers' is not finite"),
        (lambda a: {k: v for k, v in a.items() if "comp" not in k}, "unreadable calibration"),
        (lambda a: {**a, "cpu-fp32/fused": np.array([{"a": 1}], dtype=object)}, "unreadable calibration"),
    ],
)
def test_calibration_arrays_are_checked(folder: Path, change: Any, message: str) -> None:
    path = folder / "calibration.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **change(arrays))
    edit_manifest(folder, nothing, rehash=True)
    with pytest.raises(BundleError, match=message) as error:
        load_bundle(folder)
    assert "calibration.npz" in error.value.detail


@pytest.mark.parametrize("name", ["calibration.npz", "card.json"])
def test_a_file_that_changes_after_it_was_hashed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder / "card.json").write_text("{}")
    edit_manifest(folder, nothing, rehash=True)
    other = write_bundle(folder.parent / "other", seed=1)
    (other / "card.json").write_text('{"status": "complete"}')

    def then_change(path: Path) -> dict[str, str]:
        found = hash_files(path)
        (folder / name).write_bytes((other / name).read_bytes())
        return found

    monkeypatch.setattr(loading, "hash_files", then_change)
    with pytest.raises(BundleError, match=f"{name}: changed while"):
        load_bundle(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no archive", b"\x93NUMPY", DEEP])
def test_calibrations_that_are_no_archive_are_refused(folder: Path, content: bytes) -> None:
    (folder / "calibration.npz").write_bytes(content)
    edit_manifest(folder, nothing, rehash=True)
    with pytest.raises(BundleError, match=r"calibration\.npz: unreadable calibration"):
        load_bundle(folder)


def test_a_single_array_is_no_calibration(folder: Path) -> None:
    with (folder / "calibration.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    edit_manifest(folder, nothing, rehash=True)
    with pytest.raises(BundleError, match=r"calibration\.npz: unreadable calibration"):
        load_bundle(folder)


def test_a_graph_that_is_no_graph_is_named(folder: Path) -> None:
    (folder / "defense.onnx").write_bytes(b"not a graph")
    edit_manifest(folder, nothing, rehash=True)
    with pytest.raises(BundleError, match=r"defense\.onnx: ONNX Runtime refuses"):
        Engine.open(load_bundle(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.output.pop(), "graph outputs are"),
        (lambda g: g.output[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 7), "logits"),
        (lambda g: g.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 1), "'pixels' has shape"),
    ],
)
def test_the_graphs_signature_must_be_the_manifests(folder: Path, change: Any, message: str) -> None:
    model = ir.to_proto(split_parts(ir.from_proto(tiny_graph()))["full"])
    change(model.graph)
    (folder / "defense.onnx").write_bytes(model.SerializeToString())
    assert onnx.load(folder / "defense.onnx")
    edit_manifest(folder, nothing, rehash=True)
    with pytest.raises(BundleError, match=message) as error:
        Engine.open(load_bundle(folder)).warm_up()
    assert "defense.onnx" in error.value.detail


def test_a_guard_is_heard_beside_the_fused_scores(folder: Path) -> None:
    calibration = load_bundle(folder).calibration("cpu")
    assert calibration.heard == ("neuron_sensitivity", "margin_drop")  # the guard is one of those fused
    alone = calibration.model_copy(update={"fused": ["neuron_sensitivity"]})
    assert alone.heard == ("neuron_sensitivity", "margin_drop")
    assert alone.model_copy(update={"guard": None}).heard == ("neuron_sensitivity",)

"""Which precision is served: none that was not calibrated, fp16 by itself on CUDA alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gateway.answers.respond import model_summary
from gateway.core import engine as engine_module
from gateway.core.decode import to_pixels
from gateway.core.engine import Engine, WantedPrecision, choose
from gateway.core.loading import hash_files, load_bundle, read_manifest, write_manifest
from gateway.core.manifest import MANIFEST, graphs_sha256
from gateway.errors import BundleError, ConfigError
from gateway.settings import Settings
from gateway.versions.registry import load_registry
from tests.gateway.tiny import clean_image, patched_image, write_bundle
from training.export.half import half_parts
from training.export.parts import graph_specs, write_parts


def with_half(folder: Path, *keys: str) -> Path:
    """Add the fp16 variant and, for each of `keys`, a calibration of the same scores that was not evaluated."""
    manifest = read_manifest(folder)
    parts = half_parts({part: ir.from_proto(onnx.load(folder / graph.file)) for part, graph in manifest.graphs.items()})
    write_parts(parts, folder, "fp16")
    (known,) = manifest.calibrations
    with np.load(folder / "calibration.npz") as file:
        arrays = {name.partition("/")[2]: file[name] for name in file.files}
    np.savez(
        folder / "calibration.npz",
        allow_pickle=False,
        **{f"{key}/{name}": array for key in (known.key, *keys) for name, array in arrays.items()},
    )
    made = []
    for key in keys:
        provider, _, precision = key.partition("-")
        digest = graphs_sha256(hash_files(folder), precision)  # type: ignore[arg-type]
        told = {"provider": provider, "precision": precision, "graphs_sha256": digest, "evaluated": False}
        made.append(known.model_copy(update=told))
    variants = {"fp16": graph_specs(parts, "fp16")}
    write_manifest(folder, manifest.model_copy(update={"variants": variants, "calibrations": [known, *made]}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


def test_a_variant_that_was_not_calibrated_is_not_served(folder: Path) -> None:
    bundle = load_bundle(with_half(folder))
    assert Engine.open(bundle, device="cpu").precision == "fp32"
    with pytest.raises(BundleError, match=r"no calibration for cpu-fp16 \(has cpu-fp32\); `palisade calibrate`"):
        Engine.open(bundle, device="cpu", precision="fp16")
    with pytest.raises(ConfigError, match="no calibration for cpu-fp16"):
        load_registry(Settings(models=[folder], threads=1, precision="fp16"))


def test_the_calibrated_variant_is_served_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_half(folder, "cpu-fp16")
    with caplog.at_level(logging.INFO):
        pipeline = load_registry(Settings(models=[folder], threads=1, precision="fp16")).get()
    assert (pipeline.engine.precision, pipeline.judge.calibration.key) == ("fp16", "cpu-fp16")
    assert model_summary(pipeline, default=True).precision == "fp16"
    for part in (
        "loaded tiny 1.0.0 on cpu-fp16",
        "slower than fp32",
        "card's figures were measured on another provider or precision",
    ):
        assert part in caplog.text
    pixels = to_pixels(np.stack([clean_image(), patched_image()]))
    expected = Engine.open(load_bundle(folder), device="cpu", precision="fp32").run(pixels)
    np.testing.assert_allclose(pipeline.engine.run(pixels).logits, expected.logits, rtol=1e-2)


@pytest.mark.parametrize(
    ("keys", "gpu", "device", "precision", "chosen"),
    [
        (["cpu-fp16"], True, "auto", "auto", "cpu-fp32"),
        (["cpu-fp16"], True, "auto", "fp16", "cpu-fp16"),
        (["cuda-fp32", "cuda-fp16"], True, "auto", "auto", "cuda-fp16"),
        (["cuda-fp32", "cuda-fp16"], True, "auto", "fp32", "cuda-fp32"),
        (["cuda-fp32", "cuda-fp16"], False, "auto", "auto", "cpu-fp32"),
        (["cuda-fp32"], True, "auto", "auto", "cuda-fp32"),
        (["cuda-fp32"], False, "cuda", "auto", "cuda-fp32"),
        (["cuda-fp16"], False, "cuda", "auto", "cuda-fp16"),
        (["cuda-fp16"], True, "cuda", "fp32", None),
        (["cuda-fp16"], False, "auto", "fp16", None),
    ],
)
def test_what_is_chosen(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys: list[str],
    gpu: bool,
    device: Any,
    precision: WantedPrecision,
    chosen: str | None,
) -> None:
    bundle = load_bundle(with_half(folder, *keys))
    monkeypatch.setattr(engine_module, "_has_cuda", lambda: gpu)
    if chosen is None:
        with pytest.raises(BundleError, match="no calibration for"):
            choose(bundle, device, precision)
    else:
        assert "-".join(choose(bundle, device, precision)) == chosen


def test_a_calibration_belongs_to_the_graphs_of_its_precision(folder: Path) -> None:
    with_half(folder, "cpu-fp16")
    path = folder / "screen-fp16.onnx"
    model = onnx.load(path)
    model.doc_string = "altered"
    path.write_bytes(model.SerializeToString())
    write_manifest(folder, read_manifest(folder))
    with pytest.raises(BundleError, match="calibration cpu-fp16 belongs to another graph"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.pop("variants"), "calibration cpu-fp16: variants lacks fp16"),
        (lambda m: m["variants"]["fp16"].pop("screen"), r"variants.fp16 has the parts \['full', 'verdict'\]"),
        (lambda m: m["variants"]["fp16"]["full"].update(file="defense.onnx"), "expected defense-fp16.onnx"),
        (lambda m: m["variants"].update(fp8=m["variants"]["fp16"]), "variants.fp8"),
        (lambda m: m["files"].pop("verdict-fp16.onnx"), "files lacks verdict-fp16.onnx"),
    ],
)
def test_broken_manifests_are_refused(folder: Path, edit: Any, message: str) -> None:
    with_half(folder, "cpu-fp16")
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)

"""`palisade calibrate`: the bundle that it makes is the old one with one calibration more, and is served with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gateway.core.engine import Engine
from gateway.core.loading import Bundle, load_bundle
from gateway.core.outputs import FullOutputs
from gateway.core.pipeline import Pipeline
from gateway.core.verdict import Judge
from tests.training.toy import gratings
from training.bundling import recalibrate
from training.bundling.recalibrate import card_measured
from training.commands.main import app
from training.served.answers import serve
from training.served.scoring import run_images


def calibrate(bundle: Bundle, out: Path, *options: str, version: str = "1.0.1") -> str:
    command = ["calibrate", str(bundle.path), "--out", str(out), "--version", version, "--device", "cpu", *options]
    done = CliRunner().invoke(app, command)
    assert "Traceback" not in done.output
    return f"{done.exit_code} {' '.join(done.output.split())}"


def test_fp16_is_added_and_served(bundle: Bundle, tmp_path: Path) -> None:
    said = calibrate(bundle, tmp_path / "new", "--precision", "fp16")
    assert said.startswith("0 "), said
    assert "gratings 1.0.1, calibrated for cpu-fp32, cpu-fp16" in said
    made = load_bundle(tmp_path / "new")
    old = bundle.manifest.model_dump(exclude={"version", "variants", "calibrations", "files"})
    assert made.manifest.model_dump(exclude={"version", "variants", "calibrations", "files"}) == old
    assert (
        made.manifest.files.items()
        >= {name: digest for name, digest in bundle.manifest.files.items() if name != "calibration.npz"}.items()
    )
    before, added = made.manifest.calibrations
    assert [before] == bundle.manifest.calibrations
    assert (added.key, added.evaluated, before.evaluated) == ("cpu-fp16", False, True)
    assert (added.fused, added.guard, added.n) == (before.fused, before.guard, before.n)
    for name, values in bundle.arrays.items():
        np.testing.assert_array_equal(made.arrays[name], values)
        other = made.arrays[name.replace("fp32", "fp16")]
        assert other.shape[1:] == values.shape[1:]
    engine = Engine.open(made, device="cpu", precision="fp16", threads=1)
    engine.warm_up()
    images = gratings(8, seed=3).x
    answers = serve(Pipeline(made, engine, Judge(made, made.calibration("cpu", "fp16")), action="sanitize"), images)
    single = Pipeline(
        bundle,
        Engine.open(bundle, device="cpu", threads=1),
        Judge(bundle, bundle.calibration("cpu")),
        action="sanitize",
    )
    assert (answers.raw == serve(single, images).raw).all()
    assert not (tmp_path / "new.part").exists()


def test_one_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    assert calibrate(bundle, tmp_path / "new").startswith("0 ")
    made = load_bundle(tmp_path / "new")
    (calibration,) = made.manifest.calibrations
    assert calibration == bundle.calibration("cpu").model_copy(update={"evaluated": False})
    assert not made.manifest.variants
    assert card_measured(made.manifest, calibration).calibrations == bundle.manifest.calibrations


def without_saliency(*args: Any, **options: Any) -> FullOutputs:
    """Outputs whose gradient has vanished."""
    outputs = run_images(*args, **options)
    return replace(outputs, saliency=np.zeros_like(outputs.saliency))


def test_what_cannot_be_is_one_line(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    assert "2 error:" in (said := calibrate(bundle, tmp_path / "old"))
    assert "exists; choose another --out" in said
    assert "is already version 1.0.0" in calibrate(bundle, tmp_path / "new", version="1.0.0")
    assert "--version newest: expected three numbers" in calibrate(bundle, tmp_path / "new", version="newest")
    with monkeypatch.context() as patched:
        # Whether ONNX Runtime's CPU provider really rounds to float16 hangs on what it fuses.
        patched.setattr(recalibrate, "run_images", without_saliency)
        said = calibrate(bundle, tmp_path / "new", "--precision", "fp16")
    assert "fp16 cannot hold this network's values" in said
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    assert "gratings" in calibrate(bundle, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_other_data_are_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads((bundle.path / "manifest.json").read_text())
    assert told["data"]["select"]["n"] > 20
    with np.load(bundle.path.parent / "gratings.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "gratings.npz", **arrays | {"x_train": 255 - arrays["x_train"]})
    monkeypatch.setenv("PALISADE_DATA", str(tmp_path))
    assert "split is not the one" in calibrate(bundle, tmp_path / "new")

"""`palisade votes`: benign objections are calibrated, and nothing else of the bundle changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gateway.core.engine import Engine
from gateway.core.loading import Bundle, load_bundle
from gateway.core.pipeline import Pipeline
from gateway.core.votes import objections
from training.bundling.provenance import made_with
from training.bundling.votes import logits_under, with_votes
from training.commands.main import app
from training.errors import TrainingError


def test_a_bundle_gets_votes_and_stays_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    made = with_votes(bundle.path, tmp_path / "voting")
    rule = made.calibration("cpu", "fp32").votes
    assert rule is not None
    size = bundle.manifest.input.height
    assert rule.patch == max(1, round((0.05 * size * size) ** 0.5))
    data, _ = made_with(bundle)
    assert rule.n == len(data.calibrate)
    assert {name: digest for name, digest in made.manifest.files.items() if name != "calibration.npz"} == {
        name: digest for name, digest in bundle.manifest.files.items() if name != "calibration.npz"
    }
    for name, array in bundle.arrays.items():
        np.testing.assert_array_equal(made.arrays[name], array)
    pipeline = Pipeline.on(Engine.open(made, device="cpu"), made, alpha=0.05, votes=True, action="sanitize")
    assert pipeline.votes is not None
    images = data.calibrate.x[:6]
    decisions = pipeline.decide_images(list(images), explain=False)
    served = np.array([each.served.prediction.index for each in decisions])
    expected = objections(served, logits_under(pipeline, images, pipeline.votes.masks))[0].max(1)
    np.testing.assert_allclose([each.voted.objection for each in decisions if each.voted], expected, atol=1e-5)
    assert set(np.round(expected, 4)) <= set(np.round(made.arrays["cpu-fp32/votes"], 4))


def test_the_command_says_what_it_made(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "voting"
    result = CliRunner().invoke(app, ["votes", str(bundle.path), "--out", str(out), "--patch", "3", "--masks", "3"])
    assert result.exit_code == 0, result.output
    assert "patches of 3 pixels" in " ".join(result.output.split())
    assert load_bundle(out).calibration("cpu", "fp32").votes is not None


@pytest.mark.parametrize(("options", "why"), [({"patch": 99}, "at most"), ({"version": "x"}, "three numbers")])
def test_what_cannot_be_made(bundle: Bundle, tmp_path: Path, options: dict[str, object], why: str) -> None:
    with pytest.raises(TrainingError, match=why):
        with_votes(bundle.path, tmp_path / "out", **options)  # type: ignore[arg-type]
    (tmp_path / "there").mkdir()
    with pytest.raises(TrainingError, match="exists"):
        with_votes(bundle.path, tmp_path / "there")

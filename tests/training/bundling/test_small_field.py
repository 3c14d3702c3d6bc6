"""`palisade small-field`: a bundle gets the network, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gateway.core.certificate import CertificateWanted
from gateway.core.decode import to_pixels
from gateway.core.loading import Bundle, load_bundle
from gateway.core.masks import MaskSet
from gateway.core.small_field import SMALL_FIELD
from gateway.core.votes import votes_part
from tests.training.small_fields import write_small_field
from tests.training.toy import random_network
from training.bundling.provenance import made_with
from training.bundling.small_field import TENSORS, load_small_field, with_small_field
from training.bundling.votes import BEYOND, WHOLE, with_votes
from training.commands.main import app
from training.errors import TrainingError
from training.loop.weights import read_kept, write_kept
from training.models import ModelSpec
from training.served.answers import open_pipeline


def test_a_bundle_gets_one_and_stays_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    data, _ = made_with(bundle)
    weights = write_small_field(tmp_path / "fields.safetensors", data)
    made = with_small_field(bundle.path, tmp_path / "made", weights, version="1.0.1")
    assert made.version == "1.0.1"
    files = dict(made.manifest.files)
    assert files.pop(SMALL_FIELD)
    assert files.pop(TENSORS)
    assert files == bundle.manifest.files
    assert made.manifest.training["small_field"]["recipe"]["model"]["arch"] == "small_field"
    pipeline, size = open_pipeline(made), made.manifest.input.height
    (decision,) = pipeline.decide_images([data.test.x[0]], explain=False)
    wanted = CertificateWanted(MaskSet(size, size, 2, 4), by="small_field")
    found = pipeline.certified(decision, wanted).certificate
    assert found is not None
    assert (found.by, found.forwards) == ("small_field", 1)
    assert pipeline.small_field is not None
    pixels = to_pixels(data.test.x[0])
    with torch.no_grad():
        cells = load_small_field(made).cells(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(pipeline.small_field.evidence(pixels), cells, atol=1e-5)
    (made.path / TENSORS).unlink()
    with pytest.raises(TrainingError, match="not a file of weights"):
        load_small_field(made)


def test_it_votes_on_windows_and_on_the_whole_image(bundle: Bundle, tmp_path: Path) -> None:
    data, _ = made_with(bundle)
    weights = write_small_field(tmp_path / "fields.safetensors", data)
    made = with_small_field(bundle.path, tmp_path / "made", weights)
    heard = []
    for name, whole in (("default", None), ("alone", 1.0)):
        voting = with_votes(made.path, tmp_path / name, patch=3, whole=whole)
        rule = voting.calibration("cpu", "fp32").votes
        assert rule is not None
        assert (rule.by, rule.whole, rule.beyond) == ("small_field", whole or WHOLE, BEYOND)
        assert votes_part(0.05, rule.beyond) == pytest.approx(0.033)
        heard.append(voting.arrays["cpu-fp32/votes"])
    assert (heard[0] >= heard[1] - 1e-6).all(), "what the whole image lacks to 1 counts less"
    assert (heard[0] > heard[1] + 1e-6).any()
    with pytest.raises(TrainingError, match="masks vote"):
        with_votes(made.path, tmp_path / "masks", patch=3, by="masks", whole=0.5)


def test_the_command_says_what_it_made(bundle: Bundle, tmp_path: Path) -> None:
    data, _ = made_with(bundle)
    weights, out = write_small_field(tmp_path / "fields.safetensors", data), tmp_path / "made"
    arguments = ["small-field", str(bundle.path), "--weights", str(weights), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "cells that see 6 x 6 pixels" in " ".join(result.output.split())
    assert load_bundle(out).manifest.small_field is not None
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists" in again.output


def test_other_networks_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    data, _ = made_with(bundle)
    kept = read_kept(write_small_field(tmp_path / "fields.safetensors", data))
    recipe = kept.recipe.model_copy(
        update={
            "model": ModelSpec(width=4),
            "stages": [kept.recipe.stages[0].model_copy(update={"worst_windows": None})],
        }
    )
    network = random_network(0, classes=len(data.classes))
    write_kept(tmp_path / "other.safetensors", dict(network.state_dict()), kept.model_copy(update={"recipe": recipe}))
    with pytest.raises(TrainingError, match="architecture small_resnet, not small_field"):
        with_small_field(bundle.path, tmp_path / "made", tmp_path / "other.safetensors")
    assert not (tmp_path / "made").exists()

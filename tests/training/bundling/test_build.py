"""`palisade build` from data to a bundle that the gateway loads, in one call, on pictures made here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from gateway.core.loading import load_bundle
from gateway.core.manifest import MANIFEST, WEIGHTS
from training.bundling.provenance import load_data, recipe_of
from training.commands.build import build_bundle
from training.commands.main import app
from training.errors import RecipeError, TrainingError
from training.loop.weights import keep_run
from training.served.answers import open_pipeline, serve

SIZE, CLASSES = 16, 4


def pictures(rng, labels):
    """A bright square on noise; the class is the quarter that it is in."""
    x = rng.integers(0, 90, (len(labels), SIZE, SIZE, 3))
    for image, label in zip(x, labels, strict=True):
        top, left = 1 + 8 * (label // 2), 1 + 8 * (label % 2)
        image[top : top + 6, left : left + 6] += 120
    return x.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, recipes and the bundle built from them."""
    root = tmp_path_factory.mktemp("build")
    rng = np.random.default_rng(0)
    y_train, y_test = np.repeat(np.arange(CLASSES), 60), np.repeat(np.arange(CLASSES), 10)
    np.savez(
        root / "squares.npz",
        x_train=pictures(rng, y_train),
        y_train=y_train,
        track_train=np.tile(np.arange(20), 12),
        x_test=pictures(rng, y_test),
        y_test=y_test,
        classes=np.array(["tl", "tr", "bl", "br"]),
    )
    common = {
        "data": {"source": "npz:squares", "fractions": [0.6, 0.2, 0.2]},
        "model": {"width": 8, "blocks": [1, 1]},
        "batch": 32,
        "precision": "fp32",
    }
    adversary = {"eps": 8, "steps": 2, "clean_weight": 1.0}
    standard = {**common, "name": "squares-standard", "stages": [{"name": "a", "epochs": 16, "lr": 0.05}]}
    terms = {
        "jacobian": {"weight": 1e-4},
        "selective": {"weight": 0.01, "grid": 4},
        "sns": {"weight": 0.1, "pairs": 32},
    }
    companion = {
        **common,
        "name": "squares-companion",
        "init": "squares-standard",
        "teacher": "squares-standard",
        "stages": [
            {"name": "at", "epochs": 1, "lr": 0.02, "adversary": adversary},
            {"name": "terms", "epochs": 1, "lr": 0.01, "batchnorm": "frozen", "adversary": adversary, "terms": terms},
        ],
    }
    bundle = {
        "name": "squares",
        "version": "1.0.0",
        "standard": "standard.yaml",
        "companion": "companion.yaml",
        "kinds": True,
        "votes": True,
        "pool": True,
        "samples": 1,
        "evaluation": {
            "unaware": 8,
            "patched": 8,
            "adaptive": 4,
            "adaptive_steps": 5,
            "adaptive_targets": 1,
            "steps": 5,
            "bounds": [{"figure": "accuracy_answering", "kind": "at_least", "bound": 0.9}],
        },
    }
    for name, content in (("standard", standard), ("companion", companion), ("bundle", bundle)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALISADE_DATA", str(root))
        build_bundle(root / "bundle.yaml", root / "out", runs=root / "runs")
        yield root


def test_the_gateway_serves_it(folder):
    bundle = load_bundle(folder / "out")
    with np.load(folder / "squares.npz") as file:
        answers = serve(open_pipeline(bundle), file["x_test"])
        assert (answers.raw == file["y_test"]).mean() > 0.9
    assert not (folder / "out.part").exists()
    assert bundle.calibration("cpu", "fp32").kinds is not None
    assert bundle.calibration("cpu", "fp32").votes is not None
    assert bundle.calibration("cpu", "fp32").pool is not None


def test_networks_are_taken_and_the_card_is_left_to_evaluate(folder):
    """The same networks give the same scores and cutoffs; nothing is trained."""
    again = build_bundle(
        folder / "bundle.yaml",
        folder / "again",
        runs=folder / "no-runs",
        networks=folder / "out" / "networks.safetensors",
        card=False,
    )
    first = load_bundle(folder / "out")
    assert not (folder / "no-runs").exists()
    assert again.card() is None
    (old,), (new,) = first.manifest.calibrations, again.manifest.calibrations
    # An exporter names its nodes anew every time.
    assert new.model_copy(update={"graphs_sha256": old.graphs_sha256, "kinds": old.kinds}) == old
    # Its attacks are made with the networks in memory, whose threads may add in another order.
    assert old.kinds is not None
    assert new.kinds is not None
    assert new.kinds.fitted == old.kinds.fitted
    np.testing.assert_allclose(new.kinds.weights, old.kinds.weights, atol=0.05)
    assert recipe_of(again) == recipe_of(first)
    options = ["--level", "basic", "--install", "--work", str(folder / "work")]
    done = CliRunner().invoke(app, ["evaluate", str(folder / "again"), *options])
    assert done.exit_code in {0, 1}, done.output  # five steps may fail a self-check; the card is written all the same
    told, found = first.card(), load_bundle(folder / "again").card()
    assert told is not None
    assert found is not None
    assert told["figures"] == found["figures"]
    with pytest.raises(TrainingError, match="cannot rebuild the networks"):
        build_bundle(folder / "bundle.yaml", folder / "never", runs=folder / "r", networks=folder / "squares.npz")


def test_networks_may_be_files_of_weights(folder):
    """Nothing is trained; the manifest states every training behind them."""
    first = load_bundle(folder / "out")
    data = load_data(recipe_of(first)[0])
    content = yaml.safe_load((folder / "bundle.yaml").read_text())
    for role in ("standard", "companion"):
        keep_run(folder / "runs" / f"squares-{role}", folder / f"kept-{role}.safetensors", data)
        content[role] = str(folder / f"kept-{role}.safetensors")
    (folder / "kept.yaml").write_text(yaml.safe_dump(content))
    made = build_bundle(folder / "kept.yaml", folder / "kept", runs=folder / "no-runs", card=False)
    assert not (folder / "no-runs").exists()
    assert recipe_of(made) == recipe_of(first)
    pairs = [load_file(bundle.path / "networks.safetensors") for bundle in (made, first)]
    assert pairs[0].keys() == pairs[1].keys()
    # Constants are fitted anew, by sums in another order.
    networks = [name for name in pairs[0] if not name.startswith("constants/")]
    assert len(networks) > 20
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in networks)
    (stated,) = made.manifest.training["history"]["standard"]
    assert stated["recipe"] == made.manifest.training["standard"]
    assert stated["epochs"] >= 1


def test_card_and_samples(folder):
    card = json.loads((folder / "out" / "card.json").read_text())
    assert card["figures"]["accuracy_answering"]["n"] == 40
    assert {"benign", "companion_pgd", "unaware", "adaptive", "cascade", "figures", "date", "settings"} <= set(card)
    assert "Robustness card: squares" in (folder / "out" / "card.md").read_text()
    assert (folder / "out" / "samples" / "clean_0.png").is_file()


def test_an_existing_bundle_is_kept(folder):
    with pytest.raises(TrainingError, match="--force"):
        build_bundle(folder / "bundle.yaml", folder / "out", runs=folder / "runs")


def test_force_replaces_bundles_alone(folder):
    precious = folder / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="not a bundle"):
        build_bundle(folder / "bundle.yaml", precious, runs=folder / "runs", force=True)
    assert (precious / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"version": "1.0"}, "version"),
        ({"fused": []}, "fused"),
        ({"guard": {"score": "luck", "share_below": 0.5, "share": 0.5, "knee": 0.01}}, "guard: unknown scores"),
        ({"screened_by": ["margin_drop"]}, "screened_by: unknown scores"),
        ({"policy": {"alpha": 0.03}}, "policy.alpha"),
        ({"policy": {"gate_alpha": 0.2}}, "policy.gate_alpha"),
    ],
)
def test_what_the_manifest_would_refuse_is_refused_before_training(folder, change, message):
    content = yaml.safe_load((folder / "bundle.yaml").read_text()) | change
    (folder / "refused.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=message):
        build_bundle(folder / "refused.yaml", folder / "never", runs=folder / "no-runs")
    assert not (folder / "no-runs").exists()


def test_a_bundle_that_does_not_say_how_it_was_made(folder):
    bundle = load_bundle(folder / "out")
    for training in ({}, bundle.manifest.training | {"evaluation": {"luck": 1}}):
        other = replace(bundle, manifest=bundle.manifest.model_copy(update={"training": training}))
        with pytest.raises(TrainingError, match="how it was made"):
            recipe_of(other)


def test_a_failed_build_leaves_nothing(folder, monkeypatch):
    """It fails as it writes samples, when all but them and the card lies in the draft."""
    graphs = load_bundle(folder / "out").manifest.graphs
    files = [*(graph.file for graph in graphs.values()), WEIGHTS]

    def taken(_defence, draft, **_):
        """What the finished bundle has of the same networks: nothing here depends on exporting them anew."""
        for name in files:
            shutil.copy(folder / "out" / name, draft)
        return graphs

    def full(samples, *_, **__):
        assert {*files, MANIFEST} <= {path.name for path in samples.parent.iterdir()}
        raise OSError("disk full")

    monkeypatch.setattr("training.bundling.assemble.export_defence", taken)
    monkeypatch.setattr("training.bundling.assemble.write_samples", full)
    with pytest.raises(OSError, match="disk full"):
        build_bundle(folder / "bundle.yaml", folder / "other", runs=folder / "runs")
    assert not (folder / "other").exists()
    assert not (folder / "other.part").exists()


def test_verify_passes_and_fails_an_altered_card(folder):
    runner = CliRunner()
    done = runner.invoke(app, ["verify", str(folder / "out")])
    assert done.exit_code == 0, done.output
    assert "pass" in done.output
    from gateway.core.loading import write_manifest

    bundle = load_bundle(folder / "out")
    path = folder / "out" / "card.json"
    original = path.read_text()
    card = json.loads(original)
    card["figures"]["accuracy_answering"]["value"] = 0.5
    path.write_text(json.dumps(card))
    write_manifest(folder / "out", bundle.manifest)
    altered = runner.invoke(app, ["verify", str(folder / "out")])
    path.write_text(original)
    write_manifest(folder / "out", bundle.manifest)
    assert altered.exit_code == 1
    assert "FAIL" in altered.output


def test_command_line_errors_are_one_line(folder, tmp_path):
    runner = CliRunner()
    (tmp_path / "bad.yaml").write_text("name: x\nnonsense: 1\n")
    for arguments in (
        ["train", str(tmp_path / "none.yaml")],
        ["train", str(tmp_path / "bad.yaml")],
        ["build", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "x")],
        ["verify", str(tmp_path)],
    ):
        done = runner.invoke(app, arguments)
        assert done.exit_code == 2, arguments
        assert "Traceback" not in done.output


def test_unknown_scores_are_refused(folder):
    content = yaml.safe_load((folder / "bundle.yaml").read_text()) | {"fused": ["luck"]}
    (folder / "luck.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match="luck"):
        build_bundle(folder / "luck.yaml", folder / "never", runs=folder / "runs")

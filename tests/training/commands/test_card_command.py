"""`palisade card`: registered, measured, checked and exported, with the commands themselves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import yaml
from typer.testing import CliRunner

from gateway.core.loading import Bundle, load_bundle, read_manifest, write_manifest
from tests.training.commands.running import run
from training.commands.main import app


def test_a_card_is_registered_measured_and_checked(own: Path, tmp_path: Path) -> None:
    held, work = tmp_path / "held.json", tmp_path / "work"
    recipe = Path(os.environ["PALISADE_DATA"]) / "bundle.yaml"
    code, said = run("card", "register", recipe, "--out", held)
    assert code == 0, said
    registered = json.loads(held.read_text())
    assert said.endswith(registered["sha256"])
    assert registered["evaluation"]["bounds"]
    code, said = run("card", "register", own, "--out", held)
    assert code == 2
    assert "a registration is not replaced" in said
    code, said = run("evaluate", own, "--only", "benign", "--work", work, "--install", "--registration", held)
    assert code == 0, said
    card = load_bundle(own).card()
    assert card is not None
    assert card["registration"] == registered
    page = (own / "card.md").read_text()
    assert registered["sha256"] in page
    assert "before measuring" in page
    code, said = run("card", "check", own, "--registration", held)
    assert (code, registered["sha256"] in said) == (0, True), said

    card["settings"]["bounds"][0]["bound"] = 0.1
    (own / "card.json").write_text(json.dumps(card))
    write_manifest(own, read_manifest(own))
    code, said = run("card", "check", own)
    assert code == 1
    assert "registration: bounds are not the registered ones: accuracy_answering" in said


def test_a_recipe_that_names_files_of_weights_is_registered(own: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((Path(os.environ["PALISADE_DATA"]) / "bundle.yaml").read_text())
    for role in ("standard", "companion"):
        recipe[role] = str(tmp_path / f"{role}.safetensors")
        assert run("weights", own, recipe[role], "--role", role)[0] == 0
    (tmp_path / "bundle.yaml").write_text(yaml.safe_dump(recipe))
    code, said = run("card", "register", tmp_path / "bundle.yaml", "--out", tmp_path / "held.json")
    assert code == 0, said
    assert json.loads((tmp_path / "held.json").read_text())["data"] == read_manifest(own).data


def test_another_evaluation_than_the_registered_one_does_not_start(own: Path, bundle: Bundle, tmp_path: Path) -> None:
    root, held = Path(os.environ["PALISADE_DATA"]), tmp_path / "held.json"
    recipe = yaml.safe_load((root / "bundle.yaml").read_text())
    recipe["evaluation"]["bounds"][0]["bound"] = 0.9
    for role in ("standard", "companion"):
        shutil.copy(root / f"{role}.yaml", tmp_path)
    (tmp_path / "bundle.yaml").write_text(yaml.safe_dump(recipe))
    assert run("card", "register", tmp_path / "bundle.yaml", "--out", held)[0] == 0
    work = tmp_path / "work"
    code, said = run("evaluate", own, "--only", "benign", "--work", work, "--registration", held)
    assert code == 2
    assert "registration: bounds are not the registered ones: accuracy_answering" in said
    assert not (work / "units").exists()
    code, said = run(
        "build", root / "bundle.yaml", "--out", tmp_path / "built", "--networks", bundle.path / "networks.safetensors",
        "--registration", held,
    )  # fmt: skip
    assert code == 2
    assert "registration: bounds are not the registered ones" in said


def test_exports_are_files_or_standard_output(own: Path, tmp_path: Path) -> None:
    code, said = run("card", "export", own, "--format", "sarif")
    assert code == 2
    assert "no card to export" in said
    assert run("evaluate", own, "--only", "benign", "--work", tmp_path / "work", "--install")[0] == 0
    out = tmp_path / "card.sarif"
    code, said = run("card", "export", own, "--format", "sarif", "--out", out)
    assert code == 0, said
    done = CliRunner().invoke(app, ["card", "export", str(own), "--format", "sarif"])
    assert json.loads(done.stdout) == json.loads(out.read_text())
    code, said = run("card", "export", own, "--format", "luck")
    assert code == 2
    assert "cyclonedx" in said
    code, said = run("card", "check", own)
    assert code == 0, said
    assert "without a registration" in said

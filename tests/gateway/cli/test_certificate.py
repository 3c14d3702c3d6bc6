"""`palisade certificate check`: what was answered holds, and what was changed afterwards does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gateway.cli.main import app
from gateway.opening import load_pipeline
from tests.gateway.tiny import SIZE, add_small_field, clean_image, encode, patched_image, write_bundle

PROVED, AGREED = clean_image((200, 0, 0)), clean_image()
runner = CliRunner()


@pytest.fixture
def answered(bundle_folder: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """The path of an image, and the answer with a certificate that `palisade predict` gives."""

    def answer(image: Any, *options: str) -> tuple[Path, dict[str, Any]]:
        path = tmp_path / "image.png"
        path.write_bytes(encode(image))
        arguments = ["predict", str(path), "-m", str(bundle_folder), "--json", "--certify", "patch", *options]
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        return path, json.loads(result.stdout)

    return answer


def check(answer: Any, image: Path, bundle: Path) -> Result:
    path = image.with_name("answer.json")
    path.write_text(answer if isinstance(answer, str) else json.dumps(answer))
    return runner.invoke(app, ["certificate", "check", str(path), str(image), str(bundle)])


@pytest.mark.parametrize(
    ("image", "options", "level"),
    [
        (PROVED, [], "proved"),
        (AGREED, ["--explain", "all"], "agreed"),
        (PROVED, ["--certify-level", "agreed", "--patch-side", "5"], "agreed"),
        (patched_image(), ["--explain", "all"], "none"),
    ],
)
def test_what_was_answered_holds(
    answered: Callable[..., Any], bundle_folder: Path, image: Any, options: list[str], level: str
) -> None:
    path, answer = answered(image, *options)
    assert answer["certificate"]["level"] == level
    result = check(answer, path, bundle_folder)
    assert result.exit_code == 0, result.stderr
    assert f"{level}: '{answer['prediction']['label']}' against any patch of" in result.stdout


def test_what_small_fields_prove_holds_and_forgeries_do_not(tmp_path: Path) -> None:
    bundle, path = add_small_field(write_bundle(tmp_path / "fields")), tmp_path / "image.png"
    path.write_bytes(encode(PROVED))
    result = runner.invoke(app, ["predict", str(path), "-m", str(bundle), "--json", "--certify", "small_field"])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    made = answer["certificate"]
    assert (made["level"], made["by"], made["forwards"], made["votes"]) == ("proved", "small_field", 1, None)
    held = check(answer, path, bundle)
    assert held.exit_code == 0, held.stderr
    forged = [
        _set("certificate", "by", to="masks"),
        _set("certificate", "masks", to=1),
        _set("certificate", "level", to="agreed"),
        _set("certificate", "record", "graphs_sha256", to="0" * 64),
        _set("certificate", "votes", to=[]),
    ]
    for change in forged:
        changed = json.loads(json.dumps(answer))
        change(changed)
        refused = check(changed, path, bundle)
        assert refused.exit_code == 1, refused.stdout
    without = write_bundle(tmp_path / "without")
    assert "no network of small fields" in check(answer, path, without).stderr
    asked = runner.invoke(app, ["predict", str(path), "-m", str(without), "--certify", "small_field"])
    assert asked.exit_code != 0
    assert "no network of small fields" in asked.stderr


def _set(*place: str | int, to: Any) -> Callable[[Any], None]:
    def change(answer: Any) -> None:
        for name in place[:-1]:
            answer = answer[name]
        answer[place[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set("certificate", "level", to="proved"), "level"),
        (_set("certificate", "level", to="none"), "level"),
        (_set("prediction", "label", to="blue"), "label"),
        (_set("certificate", "label", to="blue"), "label"),
        (_set("certificate", "patch", "side", to=5), "patch share"),
        (_set("certificate", "masks", to=9), "masks"),
        (_set("certificate", "record", "masks_per_axis", to=1), "masks"),
        (_set("certificate", "record", "lead", to=0.0), "less than rounding"),
        (_set("certificate", "record", "graphs_sha256", to="0" * 64), "graphs"),
        (_set("certificate", "record", "pixels_sha256", to="0" * 64), "another one than was certified"),
        (_set("model", "version", to="2.0.0"), "model"),
        (_set("certificate", "forwards", to=0), "forwards"),
        (_set("certificate", "forwards", to=137), "forwards"),
        (_set("certificate", "votes", 3, "index", to=2), "votes"),
        (_set("certificate", "votes", 3, "label", to="blue"), "votes"),
        (_set("certificate", "votes", 0, "top", to=1), "votes"),
        (_set("certificate", "votes", to=[]), "votes"),
    ],
)
def test_what_was_changed_is_refused(
    answered: Callable[..., Any], bundle_folder: Path, change: Callable[[Any], None], why: str
) -> None:
    path, answer = answered(AGREED, "--explain", "all")
    change(answer)
    result = check(answer, path, bundle_folder)
    assert result.exit_code == 1
    assert "certificate_refused" in result.stderr
    assert why in result.stderr


def test_another_class_for_the_same_image_is_refused(answered: Callable[..., Any], bundle_folder: Path) -> None:
    path, answer = answered(AGREED)
    for part in (answer["prediction"], answer["certificate"]):
        part |= {"label": "blue", "index": 2}
    assert "level: the answer states 'agreed', found is 'none'" in check(answer, path, bundle_folder).stderr


def test_masks_that_hide_the_whole_image_prove_nothing(answered: Callable[..., Any], bundle_folder: Path) -> None:
    path, answer = answered(AGREED)
    pipeline = load_pipeline(bundle_folder)
    hidden = pipeline.engine.answer(np.zeros((1, 3, SIZE, SIZE), np.float32), np.ones((1, SIZE, SIZE), np.float32))
    index = int(hidden.argmax())
    for part in (answer["prediction"], answer["certificate"]):
        part |= {"label": pipeline.bundle.manifest.classes[index], "index": index}
    answer["certificate"] |= {"level": "proved", "masks": 1, "forwards": 1, "votes": None}
    answer["certificate"]["record"]["masks_per_axis"] = 1
    assert "so many or few masks" in check(answer, path, bundle_folder).stderr


def test_a_certificate_states_the_passes_that_it_takes(answered: Callable[..., Any], bundle_folder: Path) -> None:
    path, answer = answered(PROVED)
    answer["certificate"]["forwards"] = 24
    assert "forwards" in check(answer, path, bundle_folder).stderr


def test_another_image_is_refused(answered: Callable[..., Any], bundle_folder: Path) -> None:
    path, answer = answered(PROVED)
    path.write_bytes(encode(clean_image((201, 0, 0))))
    assert "another one than was certified" in check(answer, path, bundle_folder).stderr


def test_another_bundle_is_refused(answered: Callable[..., Any], tmp_path: Path) -> None:
    path, answer = answered(PROVED)
    other = write_bundle(tmp_path / "other", gain=9.0)
    assert "graphs: " in check(answer, path, other).stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "not JSON"), ("[]", "dictionary"), ("{}", "model: "), ("[" * 100_000, "not JSON")],
)
def test_what_is_no_certificate_is_refused(bundle_folder: Path, tmp_path: Path, text: str, why: str) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encode(AGREED))
    result = check(text, image, bundle_folder)
    assert result.exit_code == 1
    assert "certificate_invalid" in result.stderr
    assert why in result.stderr


def test_an_answer_without_a_certificate_is_none(answered: Callable[..., Any], bundle_folder: Path) -> None:
    path, answer = answered(PROVED)
    answer["certificate"] = None
    assert "certificate_invalid: certificate: " in check(answer, path, bundle_folder).stderr


def test_files_that_cannot_be_read_are_errors(answered: Callable[..., Any], bundle_folder: Path) -> None:
    path, answer = answered(PROVED)
    assert check(answer, path.with_name("gone.png"), bundle_folder).exit_code == 2
    assert check(answer, path, bundle_folder / "gone").exit_code == 2


def test_predict_refuses_what_is_below_the_level_required(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "image.png"
    path.write_bytes(encode(AGREED))
    predict = ["predict", str(path), "-m", str(bundle_folder), "--certify", "patch"]
    table = runner.invoke(app, predict)
    assert "agreed (3 px)" in table.stdout
    refused = runner.invoke(app, [*predict, "--require", "proved"])
    assert refused.exit_code == 1
    assert "required is 'proved'" in refused.stderr
    assert runner.invoke(app, [*predict[:-2], "--require", "proved"]).exit_code == 2

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway import __version__
from gateway.access.keys import ApiKey, hash_key, new_key, write_keys
from gateway.app import create_api
from gateway.cli import images as images_cli
from gateway.cli.main import app
from gateway.cli.plugins import plugins
from gateway.core.loading import read_manifest, write_manifest
from gateway.core.pipeline import Pipeline
from gateway.process.serving import server_environment
from gateway.settings import Settings, load_settings
from gateway.versions.registry import Registry
from gateway.versions.replay import sample_answer
from tests.gateway.http_thread import serving
from tests.gateway.tiny import clean_image, encode, patched_image, write_bundle

runner = CliRunner()


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, str]:
    clean, patched = tmp_path / "clean.png", tmp_path / "patched.png"
    clean.write_bytes(encode(clean_image()))
    patched.write_bytes(encode(patched_image()))
    return str(clean), str(patched)


def test_help_lists_everything_without_training() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("serve", "guard", "predict", "scan", "bundle", *(name for name in plugins() if " " not in name)):
        assert command in result.output
    below = runner.invoke(app, ["guard", "--help"]).output
    assert "calibrate" in below
    assert "guard calibrate" not in below.partition("Commands")[2]
    assert runner.invoke(app, ["--version"]).output.strip() == f"palisade {__version__}"


def test_training_commands_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] in ("training", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    monkeypatch.setattr("gateway.cli.plugins.importlib.import_module", without_torch)
    result = runner.invoke(app, ["train", "config.yaml"])
    assert result.exit_code == 2
    assert "palisade-gateway[training]" in result.output
    assert "Traceback" not in result.output


def test_predict_prints_a_table_json_and_panels(bundle_folder: Path, images: tuple[str, str], tmp_path: Path) -> None:
    models = ["--models", str(bundle_folder)]
    table = runner.invoke(app, ["predict", *images, *models, "--panel", str(tmp_path / "panels")])
    assert table.exit_code == 0
    assert "red" in table.output
    assert (tmp_path / "panels" / "patched.panel.png").read_bytes().startswith(b"\x89PNG")
    lines = runner.invoke(app, ["predict", *images, *models, "--json", "--explain", "all"]).output.splitlines()
    answers = {Path(entry["file"]).name: entry for entry in map(json.loads, lines)}
    assert {name: entry["verdict"]["flagged"] for name, entry in answers.items()} == {
        "clean.png": False,
        "patched.png": True,
    }
    assert answers["patched.png"]["explanation"]["neutral_mask"]["height"] == 16


def test_predict_walks_folders_and_puts_panels_in_the_same_places(bundle_folder: Path, tmp_path: Path) -> None:
    folder, panels = tmp_path / "images", tmp_path / "panels"
    for name in ("b/x.png", "a/x.png", "a/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"text" if name.endswith("txt") else encode(clean_image()))
    arguments = ["predict", str(folder), "-m", str(bundle_folder), "--json", "--panel", str(panels)]
    lines = runner.invoke(app, arguments).output.splitlines()
    assert [json.loads(line)["file"] for line in lines] == [str(folder / "a/x.png"), str(folder / "b/x.png")]
    assert sorted(path.relative_to(panels).as_posix() for path in panels.rglob("*.png")) == [
        "a/x.panel.png",
        "b/x.panel.png",
    ]


def test_no_panel_replaces_another(bundle_folder: Path, tmp_path: Path) -> None:
    panels = tmp_path / "panels"
    for name in ("1/x.png", "1/x.jpg", "2/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(clean_image()))
    folders = [str(tmp_path / name) for name in ("1", "2")]
    assert runner.invoke(app, ["predict", *folders, "-m", str(bundle_folder), "--panel", str(panels)]).exit_code == 0
    names = ["x.panel.png", "x.png.2.panel.png", "x.png.panel.png"]
    assert sorted(path.name for path in panels.iterdir()) == names


@pytest.mark.parametrize(
    ("disclosure", "cells", "code"),
    [
        ("full", ["red", "86.1%", "0.0025 <= 0.0080", "[bold red]yes[/]", "blue"], 0),
        ("verdict", ["red", "86.1%", "0.0025", "[bold red]yes[/]", ""], 2),
        ("label", ["red", "-", "-", "-", ""], 2),
    ],
)
def test_predict_by_a_gateway(
    pipeline: Pipeline, images: tuple[str, str], tmp_path: Path, disclosure: str, cells: list[str], code: int
) -> None:
    keys, key = tmp_path / "keys.json", new_key()
    entry = ApiKey(id="k", sha256=hash_key(key), role="client", disclosure=disclosure, created=datetime.now(UTC))
    write_keys(keys, [entry])
    api = create_api(Settings(keys_file=keys, audit=False, label_quantum=0.01))
    api.state.registry = Registry([pipeline])
    text, panels = tmp_path / "a.png", tmp_path / "panels"
    text.write_text("text")
    with serving(api) as url:
        remote = ["--url", url, "--key", key]
        table = runner.invoke(app, ["predict", *images, str(text), *remote])
        assert table.exit_code == 1
        assert "not PNG, JPEG, WebP or BMP" in table.stderr
        assert "red" in table.stdout
        answer = json.loads(runner.invoke(app, ["predict", images[1], *remote, "--json"]).stdout)
        assert images_cli.table_cells(answer) == cells
        # The picture shows evidence, which is for callers that see all of it.
        pictured = runner.invoke(app, ["predict", images[1], *remote, "--panel", str(panels)])
        assert (pictured.exit_code, (panels / "patched.panel.png").exists()) == (code, not code)
        stranger = runner.invoke(app, ["predict", images[1], "--url", url])
        assert (stranger.exit_code, "401" in stranger.stderr) == (2, True)


def test_predict_reports_files_that_are_no_images(bundle_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "a\x1b[31m.txt"
    text.write_text("text")
    absent = [str(tmp_path / "absent"), str(tmp_path / ("x" * 300))]
    result = runner.invoke(app, ["predict", str(text), *absent, "-m", str(bundle_folder)])
    assert result.exit_code == 1
    assert "File name too long" in result.output
    assert "not PNG, JPEG, WebP or BMP" in result.output
    assert "No such file" in result.output
    assert "\x1b" not in result.output


def test_bundle_commands(bundle_folder: Path, tmp_path: Path) -> None:
    assert "colour classifier" in runner.invoke(app, ["bundle", "show", str(bundle_folder)]).output
    assert "files intact" in runner.invoke(app, ["bundle", "verify", str(bundle_folder)]).output
    failed = runner.invoke(app, ["bundle", "verify", str(tmp_path)])
    assert failed.exit_code == 2
    assert "manifest.json: missing" in failed.output


def test_bundle_verify_answers_the_samples_again(tmp_path: Path, pipeline: Pipeline) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    (bundle / "samples").mkdir()
    answers = {}
    for name, image in (("clean.png", clean_image()), ("patched.png", patched_image())):
        (bundle / "samples" / name).write_bytes(encode(image))
        answers[name] = sample_answer(pipeline.decide(encode(image)))
    assert (answers["patched.png"]["before"], answers["patched.png"]["label"]) == ("blue", "red")

    def verify() -> Result:
        (bundle / "samples" / "answers.json").write_text(json.dumps(answers))
        write_manifest(bundle, read_manifest(bundle))
        return runner.invoke(app, ["bundle", "verify", str(bundle)])

    assert (verify().exit_code, "2 samples" in verify().output) == (0, True)
    answers["clean.png"] |= {"label": "green", "p_value": answers["clean.png"]["p_value"] - 0.1}
    differing = verify()
    assert differing.exit_code == 1
    assert "clean.png: label is 'red', the bundle states 'green'" in differing.stderr
    assert "clean.png: p_value" in differing.stderr
    answers["gone.png"] = answers["clean.png"]
    assert (verify().exit_code, "gone.png" in verify().stderr) == (2, True)
    # Files outside of the bundle are not opened: a device or a pipe would never end.
    (tmp_path / "outside.png").write_bytes(encode(clean_image()))
    for name in ("../../outside.png", str(tmp_path / "outside.png")):
        answers = {name: sample_answer(pipeline.decide(encode(clean_image())))}
        assert (verify().exit_code, "is no file of the bundle" in verify().stderr) == (2, True)


def test_serve_refuses_in_one_line(tmp_path: Path, bundle_folder: Path) -> None:
    for arguments, said in (
        (["--models", str(tmp_path / "absent")], "no such folder"),
        (["--models", str(bundle_folder), "--alpha", "0.02"], "0.01, 0.05, 0.1"),
        (["--models", str(bundle_folder), "--port", "0"], "PALISADE_PORT=0"),
    ):
        result = runner.invoke(app, ["serve", *arguments])
        assert result.exit_code == 2
        assert said in result.output.replace("\n", "")


def test_an_option_outweighs_a_variable_also_with_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKERS": "4", "DEVICE": "cuda", "MAX_PIXELS": "100"}.items():
        monkeypatch.setenv(f"PALISADE_{name}", value)
    chosen = load_settings(workers=1, device="cpu", models=[Path("a"), Path("b")])
    for name, value in server_environment(chosen).items():
        monkeypatch.setenv(name, value)
    served = load_settings()
    assert (served.workers, served.device, served.max_pixels) == (1, "cpu", 100)
    assert served == chosen.model_copy(update={"models": [Path("a").resolve(), Path("b").resolve()]})


def test_the_service_imports_without_torch() -> None:
    check = "import gateway.service, gateway.cli.main, sys; assert not {'torch', 'training'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[3])

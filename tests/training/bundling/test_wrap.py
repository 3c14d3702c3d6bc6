"""`palisade wrap` and `palisade harden`, as a user runs them, and what they say when something is wrong."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from gateway.app import create_api
from gateway.core.loading import load_bundle
from gateway.core.preprocessing import Resize
from gateway.settings import Settings
from gateway.telemetry import metrics
from gateway.versions.registry import Registry, load_pipeline
from tests.gateway.http_thread import serving
from tests.training.models import test_layers
from tests.training.models.test_adapted import Stages
from tests.training.toy import CLASSES, SIDE, gratings
from training.bundling.networks import load_defence
from training.bundling.provenance import made_with
from training.bundling.wrap import recipes_for, slug
from training.commands.main import app
from training.data.dataset import Split
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.recipes.training import DataSpec

MODEL = "tests.training.models.test_adapted:Stages"


def write_folder(root: Path, split: Split, *, side: int = SIDE) -> Path:
    for number, (image, label) in enumerate(zip(split.x, split.y, strict=True)):
        folder = root / f"direction{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((side, side)).save(folder / f"image{number}.png")
    return root


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network that is not ours, as `weights.safetensors`, and images that it has not seen, in `photos`."""
    root = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    network, split = Stages(CLASSES), gratings(256, seed=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    x, y = (to_tensor(split.x) - 0.5) / 0.15, torch.from_numpy(split.y)
    for step in range(80):
        part = slice(64 * (step % 4), 64 * (step % 4) + 64)
        optimizer.zero_grad()
        F.cross_entropy(network(x[part]), y[part]).backward()
        optimizer.step()
    save_file(network.state_dict(), root / "weights.safetensors")
    write_folder(root / "photos", gratings(240, seed=5))
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def wrap(given: Path, out: Path, **changes: object) -> Result:
    options = {
        "weights": given / "weights.safetensors",
        "data": given / "photos",
        "out": out,
        "size": SIDE,
        "normalise": "0.5,0.5,0.5/0.15,0.15,0.15",
        "threads": 1,
    } | changes
    model = options.pop("model", MODEL)
    given_options = ((f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None)
    return run("wrap", model, *(part for option in given_options for part in option))


@pytest.fixture(scope="module")
def bundle(given: Path) -> Path:
    made = wrap(given, given / "models" / "toy")
    assert made.exit_code == 0, made.output
    assert "accuracy on the select split: " in made.stdout
    assert "no card yet" in " ".join(made.stdout.split())
    return given / "models" / "toy"


def test_a_wrapped_network_is_served_and_flags_an_attack(bundle: Path) -> None:
    loaded, answers = load_bundle(bundle), json.loads((bundle / "samples" / "answers.json").read_text())
    assert not loaded.manifest.companion
    assert set(loaded.manifest.graphs) == {"verdict", "full"}
    assert [layer.name for layer in loaded.manifest.layers] == ["stem", "middle", "late"]
    assert answers["clean_0.png"]["flagged"] is False
    flagged = [name for name, answer in answers.items() if answer["flagged"]]
    assert flagged
    assert all(not name.startswith("clean") for name in flagged)
    pipeline = load_pipeline(bundle, Settings(threads=1))
    api = create_api(Settings())
    api.state.registry = Registry([pipeline])
    metrics.announce(pipeline)
    with serving(api) as url:
        picture = (bundle / "samples" / flagged[0]).read_bytes()
        answer = httpx.post(f"{url}/v1/predict?explain=all", content=picture, timeout=30).json()
    assert answer["verdict"]["flagged"] is True
    assert answer["prediction"]["label"] == answers[flagged[0]]["label"]
    assert {row["name"] for row in answer["verdict"]["evidence"]} == set(loaded.manifest.scores)
    assert answer["explanation"]["companion"] is None


def test_weights_and_data_come_back(bundle: Path, given: Path) -> None:
    loaded = load_bundle(bundle)
    data, _ = made_with(loaded)
    network = Stages(CLASSES)
    network.load_state_dict(load_file(given / "weights.safetensors"))
    x = to_tensor(data.test.x[:8])
    expected = network.eval()((x - 0.5) / 0.15)
    torch.testing.assert_close(load_defence(loaded).network(x), expected, atol=1e-4, rtol=1e-4)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 2 kB, which raises in the writer as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["weight_normed", "spectrally_normed"])
def test_a_network_of_parametrised_weights_is_wrapped(given: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = getattr(test_layers, name)(CLASSES).eval()
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file(wrapped, tmp_path / "weights.safetensors")
    file = f"{test_layers.__file__}:{name}"
    made = wrap(given, tmp_path / "toy", model=file, weights=tmp_path / "weights.safetensors", samples=1)
    assert made.exit_code == 0, made.output
    loaded = load_bundle(tmp_path / "toy")
    assert [layer.name for layer in loaded.manifest.layers] == ["0", "1", "2"]
    x = torch.rand(4, 3, SIDE, SIDE)
    torch.testing.assert_close(load_defence(loaded).network(x), network((x - 0.5) / 0.15), rtol=1e-4, atol=1e-5)


def test_a_network_that_onnx_cannot_express_is_told_the_operator_and_the_way_out(given: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(test_layers.inverting(CLASSES).state_dict(), tmp_path / "weights.safetensors")
    file = f"{test_layers.__file__}:inverting"
    made = wrap(given, tmp_path / "toy", model=file, weights=tmp_path / "weights.safetensors", samples=1)
    assert made.exit_code == 2
    told = made.stderr[made.stderr.index("error: ") :].strip()
    assert "\n" not in told
    assert "linalg_inv" in told
    assert "write that part of the network in operators that ONNX has" in told
    assert not (tmp_path / "toy").exists()


def test_a_full_disk_leaves_nothing_behind(given: Path, tmp_path: Path) -> None:
    with full_disk():
        failed = wrap(given, tmp_path / "toy")
    assert failed.exit_code == 2
    assert "error: " in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list(tmp_path.iterdir()) == []


def changed_folder(given: Path, tmp_path: Path, case: str) -> Path:
    root = tmp_path / "photos"
    shutil.copytree(given / "photos", root)
    if case == "corrupt":
        path = root / "direction1" / "image1.png"
        path.write_bytes(path.read_bytes()[:60])
    elif case == "bare":
        (root / "nothing").mkdir()
    else:
        shutil.rmtree(root / "direction3")
    return root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"data": "corrupt"}, "image1.png: not a readable image"),
        ({"data": "bare"}, "nothing: class has no images"),
        ({"data": "three"}, "answers with 4 classes"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
        ({"weights": __file__}, "is not a safetensors file"),
        ({"model": "torchvision:resnet81"}, "has no network 'resnet81'"),
        ({"model": "torchvision:squeezenet1_1", "size": 64}, "is not of this architecture"),
        ({"model": "resnet18"}, "unknown architecture; use"),
        ({"model": "tests.training.nowhere:network"}, "no module 'tests.training.nowhere'"),
        ({"companion": "runs/none-such"}, "not a finished run"),
        ({"normalise": "0.5"}, "expected imagenet, half, none, or"),
        ({"version": "one"}, "expected three numbers"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_one_line(given: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("data") in ("corrupt", "bare", "three"):
        changes = changes | {"data": changed_folder(given, tmp_path, changes["data"])}
    failed = wrap(given, tmp_path / "out", **changes)
    assert failed.exit_code == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.output + failed.stderr
    assert not any(path.name.startswith("out") for path in tmp_path.iterdir())


def test_an_existing_bundle_is_not_replaced_unasked(given: Path, bundle: Path) -> None:
    failed = wrap(given, bundle)
    assert failed.exit_code == 2
    assert "pass --force" in failed.stderr


def test_names() -> None:
    assert slug("torchvision:ResNet18") == "resnet18"
    assert slug("my nets/Ä") == "my-nets"
    assert slug("nets/Mine.onnx") == "mine"
    assert slug("torchvision:mine.part.part") == "mine"


@pytest.mark.parametrize("side", [32, 64, 224])
def test_recipes_to_start_from(side: int) -> None:
    data = DataSpec(source="folder:photos", size=side)
    recipes = recipes_for("photos", "torchvision:resnet18", "small_resnet", data, epochs=2, batch=64)
    assert [recipe.epochs for recipe in recipes.values()] == [2, 2]
    assert recipes["standard"].model.arch == "torchvision:resnet18"
    assert recipes["companion"].model.side == {32: None, 64: 32, 224: 32}[side]
    assert recipes["standard"].data == recipes["companion"].data


def test_too_few_images_to_calibrate_on_are_said_before_anything_is_trained(given: Path, tmp_path: Path) -> None:
    made = run(
        "harden",
        MODEL,
        "--data",
        given / "photos",
        "--size",
        SIDE,
        "--runs",
        tmp_path / "runs",
        "--out",
        tmp_path / "toy",
    )
    assert made.exit_code == 2
    assert "too few images to calibrate on: the select split has 16" in " ".join(made.output.split())
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "toy").exists()


@pytest.mark.reference
def test_a_network_and_its_companion_are_trained_on_a_folder(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", gratings(400, seed=6))
    made = run(
        "harden",
        MODEL,
        "--companion-model",
        MODEL,
        "--data",
        photos,
        "--size",
        SIDE,
        "--epochs",
        2,
        "--batch",
        32,
        "--runs",
        tmp_path / "runs",
        "--out",
        tmp_path / "toy",
        "--samples",
        1,
    )
    assert made.exit_code == 0, made.output
    manifest = load_bundle(tmp_path / "toy").manifest
    assert manifest.companion
    assert set(manifest.graphs) == {"screen", "verdict", "full"}
    assert manifest.calibrations[0].guard is not None
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != "."} == {
        "toy-standard",
        "toy-companion",
    }


def test_a_stopped_wrap_goes_on_where_it_was(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph and scores are taken from the stopped run; a finished one leaves nothing but the bundle."""
    with monkeypatch.context() as patch:
        patch.setattr("training.bundling.assemble.attacked_images", stopped)
        assert wrap(given, tmp_path / "toy").exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["toy.kept.part"]
    with monkeypatch.context() as patch:
        patch.setattr("training.bundling.assemble.fit_constants", stopped)
        patch.setattr("training.bundling.assemble.export_defence", stopped)
        patch.setattr("training.bundling.calibrate.run_batches", stopped)
        made = wrap(given, tmp_path / "toy")
    assert made.exit_code == 0, made.output
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    with monkeypatch.context() as patch:  # other splits: nothing is taken
        patch.setattr("training.bundling.assemble.attacked_images", stopped)
        assert wrap(given, tmp_path / "other").exit_code == 130
        patch.setattr("training.bundling.assemble.fit_constants", broken)
        assert "anew" in wrap(given, tmp_path / "other", seed=1).stderr


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def broken(*_: object, **__: object) -> None:
    raise TrainingError("anew")


def test_a_bundle_says_what_it_flags_of_its_own_samples(given: Path, bundle: Path) -> None:
    trial = load_bundle(bundle).manifest.training["trial"]
    assert [row["title"] for row in trial["attacks"]] == [
        "PGD 4/255",
        "PGD 8/255",
        "noisy patch of 5 %",
        "sticker of 5 % (a few colours)",
    ]
    strong = trial["attacks"][1]
    assert strong["fooled"] > 0
    assert strong["flagged"]["0.05"] >= strong["flagged"]["0.01"]
    assert trial["clean"] == 36
    assert set(trial["clean_flagged"]) == {"0.005", "0.01", "0.02", "0.05", "0.1"}


def test_images_without_labels_are_answered_by_the_network(given: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted((given / "photos").glob("*/*")):
        shutil.copy(file, flat / f"{file.parent.name}-{file.name}")
    (tmp_path / "labels.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    done = wrap(given, tmp_path / "toy", data=flat, labels=tmp_path / "labels.txt", samples=1)
    assert done.exit_code == 0, done.output
    assert "its accuracy is not known" in " ".join(done.stdout.split())
    made = load_bundle(tmp_path / "toy")
    assert made.manifest.classes == [f"class {i}" for i in range(CLASSES)]
    assert "class_distance" in made.manifest.scores
    data, _ = made_with(made)
    assert data.labelled
    assert len(np.unique(data.select.y)) == CLASSES


def test_a_network_of_bgr_bytes_is_served_as_it_was_trained(given: Path, tmp_path: Path) -> None:
    mean, std = [103.0, 116.0, 123.0], [57.0, 58.0, 59.0]
    options = {"channels": "bgr", "scale": "byte", "filter": "bicubic"}
    text = "/".join(",".join(map(str, values)) for values in (mean, std))
    made = wrap(given, tmp_path / "toy", normalise=text, resize=f"shorter_side:{SIDE + 2}", samples=1, **options)
    assert made.exit_code == 0, made.output
    assert "BGR of 0..255" in made.stdout
    bundle = load_bundle(tmp_path / "toy")
    spec = bundle.manifest.input
    assert spec.resize == Resize(rule="shorter_side", resize_to=SIDE + 2, filter="bicubic", reduced=True)
    assert spec.normalise is not None
    assert spec.normalise.model_dump() == {"channel_order": "bgr", "scale": "byte", "mean": mean, "std": std}
    network = Stages(CLASSES)
    network.load_state_dict(load_file(given / "weights.safetensors"))
    x = to_tensor(made_with(bundle)[0].test.x[:4])
    theirs = (255 * x.flip(1) - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    expected = network.eval()(theirs)
    torch.testing.assert_close(load_defence(bundle).network(x), expected, atol=1e-4, rtol=1e-4)
    served = load_pipeline(tmp_path / "toy", Settings(threads=1)).engine.run(x.numpy(), part="verdict")
    np.testing.assert_allclose(served.logits, expected.detach().numpy(), atol=1e-3, rtol=1e-3)


def test_the_preprocessing_is_found_on_the_select_split(given: Path, tmp_path: Path) -> None:
    made = wrap(given, tmp_path / "toy", normalise=None, preprocessing="find", samples=1)
    assert made.exit_code == 0, made.output
    assert "mean confidence" in made.stdout
    bundle = load_bundle(tmp_path / "toy")
    select = made_with(bundle)[0].select
    assert f"on {len(select)} images of the select split" in made.stdout
    assert bundle.manifest.input.normalise is not None


def test_too_few_images_are_refused_before_one_is_read(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "few", gratings(40, seed=5))
    monkeypatch.setattr("training.data.dataset.read_images", stopped)
    made = wrap(given, tmp_path / "toy", data=tmp_path / "few")
    assert made.exit_code == 2
    assert "too few images to calibrate on" in made.stderr

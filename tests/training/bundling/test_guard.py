"""`palisade guard calibrate`, as a user runs it; its verdicts are those of a bundle with the network inside."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

from gateway.core.loading import load_bundle
from gateway.core.manifest import InputSpec
from gateway.core.pipeline import Pipeline
from gateway.core.verdict import Judge
from gateway.settings import Settings
from gateway.upstream.connection import Connection
from gateway.upstream.opening import open_engine
from gateway.versions.registry import load_pipeline
from gateway.versions.replay import replay
from tests.gateway.upstream.fake import Fake, faked
from tests.training.bundling.test_wrap import write_folder
from tests.training.once import made_once
from tests.training.toy import CLASSES, SIDE, gratings, random_network, taught, toy_dataset
from training.attacks.pgd import pgd
from training.bundling.guard import find_upstream
from training.commands.main import app
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph
from training.defence.scores import of_answers
from training.defence.upstream import Rows
from training.export.upstream import export_upstream
from training.imaging.pixels import to_tensor
from training.models.resnet import SmallResNet
from training.served.scoring import to_uint8
from training.util.module_modes import seeded


@pytest.fixture(scope="module", autouse=True)
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The four graphs are the same for every model of one size and number of classes: they are exported once."""
    made = made_once(tmp_path_factory, f"upstream-{SIDE}-{CLASSES}", export)

    def copied(folder: Path, spec: InputSpec, *, classes: int, scores: object) -> None:
        assert (spec.height, spec.width, classes, scores) == (SIDE, SIDE, CLASSES, of_answers())
        shutil.copytree(made, folder, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.bundling.guard.export_upstream", copied)
        yield made


def export(folder: Path) -> None:
    export_upstream(folder, InputSpec(height=SIDE, width=SIDE), classes=CLASSES, scores=of_answers())


def test_rows_are_those_of_the_module_and_nothing_is_inpainted_without_a_mask(graphs: Path) -> None:
    model = onnx.load(graphs / "rows.onnx")
    assert [node.op_type for node in model.graph.node].count("If") == 1
    pixels = torch.rand(3, 3, SIDE, SIDE, generator=seeded(0))
    mask = torch.zeros(3, SIDE, SIDE)
    session = onnxruntime.InferenceSession(str(graphs / "rows.onnx"), providers=["CPUExecutionProvider"])
    for marked in (False, True):
        mask[1, 2:6, 3:8] = float(marked)
        rows, roa, score, neutral = session.run(None, {"pixels": pixels.numpy(), "mask": mask.numpy()})
        with torch.no_grad():
            expected = Rows()(pixels, mask)
        for found, wanted in zip((rows, roa, score, neutral), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
        np.testing.assert_array_equal(rows[:, 0], neutral)
        outside = np.broadcast_to(mask.numpy()[:, None] == 0, neutral.shape)
        np.testing.assert_array_equal(neutral[outside], pixels.numpy()[outside])


@pytest.fixture(scope="module")
def network() -> SmallResNet:
    return taught(random_network(0, warm=False), toy_dataset(), steps=60)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos"), gratings(320, seed=5))


def served_by(network: SmallResNet) -> Fake:
    @torch.no_grad()
    def model(rows: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(rows.copy())).numpy()

    return Fake(model, [-1, 3, SIDE, SIDE], CLASSES)


@pytest.fixture(scope="module")
def upstream(network: SmallResNet) -> Iterator[Fake]:
    with faked(served_by(network)) as fake:
        yield fake


def calibrate(upstream: object, photos: Path, out: Path, *options: object) -> Result:
    given = ["guard calibrate", "--upstream", upstream, "--data", photos, "--out", out, *options]
    return CliRunner().invoke(app, [str(part) for part in given])


@pytest.fixture(scope="module")
def bundle(upstream: Fake, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "guarded"
    made = calibrate(upstream.url, photos, out)
    assert made.exit_code == 0, made.output
    text = " ".join(made.stdout.split())
    assert "the upstream's accuracy on the calibrate split: 0.9" in text or "calibrate split: 1.0" in text
    assert f"palisade guard --upstream {upstream.url}" in text
    return out


def test_verdicts_are_those_of_a_bundle_with_the_network_inside(bundle: Path, network: SmallResNet) -> None:
    """The scores that need answers alone, computed by the defence graph and by the guard, for benign and attacked."""
    loaded = load_bundle(bundle)
    data = toy_dataset()
    names = loaded.manifest.scores
    defence = DefenceGraph(
        network, None, fit_constants(network, data.train, data.select, classes=CLASSES), scores=names
    )
    outside = open_engine(loaded)
    judge = Judge(loaded, loaded.calibration("cpu"))
    x, y = to_tensor(data.test.x[:48]), torch.from_numpy(data.test.y[:48])
    attacked = (
        torch.from_numpy(to_uint8(pgd(network, x, y, eps=8 / 255, steps=10, generator=seeded(0)).numpy()))
        .permute(0, 3, 1, 2)
        .float()
        / 255
    )
    patched = x.clone()
    patched[:, :, 3:6, 4:7] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    pixels = torch.cat([x, attacked, patched]).numpy()
    a, b = defence(torch.from_numpy(pixels), torch.zeros(len(pixels), SIDE, SIDE)), outside.run(pixels, part="verdict")
    for name in ("logits", "scores", "roa", "roa_score", "neutral_pixels"):
        np.testing.assert_allclose(getattr(b, name), getattr(a, name).numpy(), atol=2e-4, err_msg=name)
    p = [judge.p_values(scores.astype(np.float64)) for scores in (a.scores.numpy(), b.scores)]
    assert np.abs(p[0] - p[1]).max() <= 1e-3
    assert p[0][48:96].mean() < p[0][:48].mean()
    c, d = defence(torch.from_numpy(pixels), a.roa), outside.run(pixels, b.roa, part="verdict")
    np.testing.assert_allclose(d.scores, c.scores.numpy(), atol=2e-4)
    np.testing.assert_allclose(d.neutral_pixels, c.neutral_pixels.numpy(), atol=1e-6)


def test_it_answers_explains_and_repeats_its_samples(bundle: Path, upstream: Fake) -> None:
    pipeline = load_pipeline(bundle, Settings(threads=1))
    assert pipeline.engine.problem is None
    upstream.batches.clear()
    (decision,) = pipeline.decide_images([gratings(4, seed=9).x[0]])
    assert sum(upstream.batches) in (5 + 49, 2 * (5 + 49))
    saliency = decision.explained.raw.saliency
    assert saliency.shape == (SIDE, SIDE)
    assert saliency.max() in (0.0, 1.0)
    count, differences = replay(load_bundle(bundle), pipeline.engine)
    assert count == 4
    assert not differences


def test_the_saliency_lies_where_the_answer_comes_from(photos: Path, tmp_path: Path) -> None:
    """A model that looks at the upper left corner alone."""

    def corner(rows: np.ndarray) -> np.ndarray:
        mean = rows[:, :, :6, :6].std((1, 2, 3))
        return np.stack([10 * mean, np.full(len(mean), 0.1), np.zeros(len(mean)), np.zeros(len(mean))], 1)

    with faked(Fake(corner, [-1, 3, SIDE, SIDE], CLASSES)) as fake:
        made = calibrate(fake.url, photos, tmp_path / "corner", "--values", "logits")
        assert made.exit_code == 0, made.output
        pipeline = load_pipeline(tmp_path / "corner", Settings(threads=1))
        (decision,) = pipeline.decide_images([gratings(4, seed=9).x[0]])
    row, column = np.unravel_index(decision.explained.raw.saliency.argmax(), (SIDE, SIDE))
    assert max(row, column) < 7


def test_a_server_with_other_weights_is_refused(bundle: Path, upstream: Fake) -> None:
    with faked(dataclasses.replace(served_by(random_network(7)))) as other:
        pipeline = load_pipeline(bundle, Settings(threads=1, upstream=other.url))
        assert pipeline.engine.problem is not None
        assert "not serve the model that was calibrated" in pipeline.engine.problem


def test_probabilities_in_json_of_a_server_with_small_batches(
    bundle: Path, network: SmallResNet, photos: Path, tmp_path: Path
) -> None:
    """Any way of asking gives the same p-values."""

    @torch.no_grad()
    def model(rows: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(rows.transpose(0, 3, 1, 2).copy())).softmax(1).numpy()

    fake = Fake(model, [-1, SIDE, SIDE, 3], CLASSES, binary=False, max_batch=16, output="probabilities")
    with faked(fake):
        made = calibrate(fake.url, photos, tmp_path / "json", "--model", "net")
        assert made.exit_code == 0, made.output
        assert max(fake.batches) == 16
        manifest = load_bundle(tmp_path / "json").manifest
        assert manifest.upstream is not None
        assert manifest.upstream.values == "probabilities"
        images = list(gratings(24, seed=11).x)
        ours, theirs = (
            [decision.raw.verdict.p_value for decision in pipeline.decide_images(images, explain=False)]
            for pipeline in (load_pipeline(folder, Settings(threads=1)) for folder in (tmp_path / "json", bundle))
        )
    assert np.abs(np.subtract(ours, theirs)).max() <= 1e-3


@pytest.mark.parametrize("body", ["png", "json"])
def test_a_plain_classifier(body: str, network: SmallResNet, bundle: Path, photos: Path, tmp_path: Path) -> None:
    @torch.no_grad()
    def model(rows: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(rows.copy())).numpy()

    fake = Fake(model, [], CLASSES)
    with faked(fake):
        described = tmp_path / "classifier.yaml"
        described.write_text(f"url: {fake.url}/classify\nbody: {body}\nscores: result.0.scores\n")
        made = calibrate(described, photos, tmp_path / "plain", "--size", SIDE, "--images-per-class", 40)
        assert made.exit_code == 0, made.output
        pipeline = load_pipeline(tmp_path / "plain", Settings(threads=1))
        images = list(gratings(8, seed=11).x)
        found = [decision.raw.prediction.index for decision in pipeline.decide_images(images, explain=False)]
    assert found == network(to_tensor(np.stack(images))).argmax(1).tolist()


def test_labels_put_folders_in_the_models_order(network: SmallResNet, photos: Path, tmp_path: Path) -> None:
    order = [3, 1, 0, 2]

    @torch.no_grad()
    def model(rows: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(rows.copy())).numpy()[:, order]

    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"direction{k}" for k in order) + "\n")
    with faked(Fake(model, [-1, 3, SIDE, SIDE], CLASSES)) as fake:
        made = calibrate(fake.url, photos, tmp_path / "ordered", "--labels", labels)
        assert made.exit_code == 0, made.output
        assert "hardly better than chance" not in made.stdout
        labels.write_text("\n".join("abcd") + "\n")
        refused = calibrate(fake.url, photos, tmp_path / "other", "--labels", labels)
    assert refused.exit_code == 2
    assert "there is no class 'direction0' among the 4 known" in " ".join(refused.output.split())


def test_images_without_labels(upstream: Fake, photos: Path, tmp_path: Path) -> None:
    """The server's answers stand in for them: only second answers that agree with the first are served."""
    flat, labels = tmp_path / "flat", tmp_path / "labels.txt"
    flat.mkdir()
    labels.write_text("\n".join(f"direction{k}" for k in range(CLASSES)) + "\n")
    for image in photos.glob("*/*.png"):
        shutil.copy(image, flat / f"{image.parent.name}-{image.name}")
    made = calibrate(upstream.url, flat, tmp_path / "unlabelled", "--labels", labels)
    assert made.exit_code == 0, made.output
    assert "the images have no labels" in " ".join(made.stdout.split())
    count, differences = replay(load_bundle(tmp_path / "unlabelled"), open_engine(load_bundle(tmp_path / "unlabelled")))
    assert count == 1
    assert not differences


def test_what_cannot_be_asked_ends_in_one_line(upstream: Fake, photos: Path, tmp_path: Path) -> None:
    def line(source: object, *options: object) -> str:
        made = calibrate(source, photos, tmp_path / "none", *options)
        assert made.exit_code == 2, made.output
        assert "Traceback" not in made.output
        return " ".join(made.output.split())

    assert "cannot be reached" in line("http://127.0.0.1:9")
    assert "neither http://HOST:PORT nor a YAML file" in line("nonsense")
    assert "would be stored" in line("http://me:secret@127.0.0.1:9")
    assert "takes images of 16 x 16" in line(upstream.url, "--size", 32)
    assert "choose one of its outputs with --output" in line(upstream.url, "--output", "other")
    (tmp_path / "wrong.yaml").write_text("url: http://127.0.0.1:9/x\nbodi: png\n")
    assert "bodi" in line(tmp_path / "wrong.yaml", "--size", SIDE)
    (tmp_path / "right.yaml").write_text("url: http://127.0.0.1:9/x\n")
    assert "give --size" in line(tmp_path / "right.yaml")
    with faked(dataclasses.replace(served_by(random_network(1)), names=["a", "b"])) as fake:
        assert "name one of its models with --model (has a, b)" in line(fake.url)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("option", [("--normalise", "imagenet"), ("--scale", "byte")])
def test_bytes_hold_no_normalisation(option: tuple[str, str], photos: Path, tmp_path: Path) -> None:
    """Not even asked: what is sent would be cut off at 0 and 255."""
    (tmp_path / "plain.yaml").write_text("url: http://127.0.0.1:9/x\n")
    with faked(Fake(lambda rows: rows, [-1, SIDE, SIDE, 3], CLASSES, datatype="UINT8")) as fake:
        for source in (fake.url, tmp_path / "plain.yaml"):
            made = calibrate(source, photos, tmp_path / "none", "--size", SIDE, *option)
            assert made.exit_code == 2
            assert "takes images as bytes, which hold no other scale" in " ".join(made.output.split())
        assert not fake.batches


def test_the_largest_request_is_the_servers_the_users_or_64() -> None:
    fake = Fake(lambda rows: rows, [-1, 3, SIDE, SIDE], CLASSES)
    with faked(fake), Connection(timeout=5) as connection:
        for stated, given, expected in (
            (65_536, None, 4096),  # more than a bundle can state
            (65_536, 7, 7),
            (16, 64, 16),
            (None, 256, 256),
            (None, None, 64),
        ):
            fake.max_batch = stated
            assert find_upstream(fake.url, connection, max_rows=given).max_rows == expected


def test_the_gateway_needs_no_torch_to_serve_it(bundle: Path) -> None:
    assert Pipeline.on(open_engine(load_bundle(bundle)), load_bundle(bundle)).engine.parts == ("verdict", "full")

"""The shipped graph in ONNX Runtime against the same networks in torch, on committed clean and attacked images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

# Attacked images that the screen sends on: a companion that errs on a quarter of the clean images judges less well.
GOES_ON = {"cifar10": 0.6, "gtsrb": 0.9}


@pytest.fixture(scope="module")
def reference(defence, pixels):
    with torch.no_grad():
        out = defence(torch.from_numpy(pixels), torch.zeros(len(pixels), *pixels.shape[2:]))
    return {name: value.numpy() for name, value in out._asdict().items()}


def test_enough_images(pixels, images):
    assert len(pixels) >= 200
    assert {0, 1, 2} == set(images["kind"].tolist())


def test_logits(outputs, reference):
    np.testing.assert_allclose(outputs.logits, reference["logits"], atol=1e-4)
    np.testing.assert_allclose(outputs.companion_logits, reference["companion_logits"], atol=1e-4)


def test_saliency(outputs, reference):
    a, b = (s.reshape(len(s), -1) for s in (outputs.saliency, reference["saliency"]))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (cosine > 0.999).mean() >= 0.99


def test_served_label_and_flag(outputs, reference, judge):
    assert (outputs.logits.argmax(1) == reference["logits"].argmax(1)).mean() >= 0.99
    flag, expected = (judge.p_values(s) <= judge.p_cutoff for s in (outputs.scores, reference["scores"]))
    assert (flag == expected).mean() >= 0.99
    assert 0 < flag.mean() < 1


def test_regions_and_masked_pass(engine, defence, pixels, outputs):
    part = slice(190, 240)
    mask = outputs.roa[part]
    again = engine.run(pixels[part], mask)
    with torch.no_grad():
        expected = defence(torch.from_numpy(pixels[part]), torch.from_numpy(mask))
    np.testing.assert_allclose(again.neutral_pixels, expected.neutral_pixels.numpy(), atol=1e-5)
    np.testing.assert_allclose(again.logits, expected.logits.numpy(), atol=1e-4)
    outside = np.broadcast_to(mask[:, None] < 0.5, again.neutral_pixels.shape)
    assert (again.neutral_pixels[outside] == pixels[part][outside]).all()


def test_without_a_mask_pixels_are_bit_identical(outputs, pixels):
    assert (outputs.neutral_pixels == pixels).all()


def test_batch_equals_singles(engine, pixels, outputs):
    for i in range(0, len(pixels), 12):
        single = engine.run(pixels[i : i + 1])
        np.testing.assert_allclose(single.logits[0], outputs.logits[i], atol=1e-4)
        np.testing.assert_allclose(single.scores[0], outputs.scores[i], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(single.saliency[0], outputs.saliency[i], atol=1e-3)


@pytest.mark.parametrize("part", ["screen", "verdict"])
def test_parts_agree_with_the_whole(bundle, engine, judge, pixels, outputs, part):
    found = engine.run(pixels, part=part)
    np.testing.assert_allclose(found.logits, outputs.logits, atol=1e-4)
    np.testing.assert_allclose(found.companion_logits, outputs.companion_logits, atol=1e-4)
    if part == "screen":
        columns = [bundle.manifest.scores.index(name) for name in bundle.manifest.screen_scores]
        np.testing.assert_allclose(found.screen_scores, outputs.scores[:, columns], rtol=1e-3, atol=1e-3)
        return
    assert (found.neutral_pixels == pixels).all()
    np.testing.assert_allclose(found.scores, outputs.scores, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.layer_deviation, outputs.layer_deviation, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.roa, outputs.roa)
    assert (found.roi != outputs.roi).mean() < 1e-4
    flag, expected = (judge.p_values(o.scores) <= judge.p_cutoff for o in (found, outputs))
    assert (flag == expected).mean() >= 0.99


def test_the_screen_lets_benign_images_off_and_attacked_ones_not(bundle, engine, judge, pixels, images):
    needs = judge.screen(engine.run(pixels, part="screen").screen_scores)
    assert needs[images["kind"] == 0].mean() < 0.3
    assert needs[images["kind"] == 1].mean() > GOES_ON[bundle.name]


@pytest.mark.parametrize("part", ["screen", "verdict", "full"])
def test_stock_operators_and_no_batch_norm(bundle, part):
    model = onnx.load(str(bundle.path / bundle.manifest.graphs[part].file))
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_samples_get_the_answers_in_the_bundle(bundle):
    import json

    from training.served.answers import open_pipeline

    pipeline = open_pipeline(bundle)
    answers = json.loads((bundle.path / "samples" / "answers.json").read_text("utf-8"))
    assert {name.split("_")[0] for name in answers} == {"clean", "attacked", "patched"}
    for name, expected in answers.items():
        decision = pipeline.decide((bundle.path / "samples" / name).read_bytes())
        assert decision.served.prediction.label == expected["label"], name
        assert decision.flagged == expected["flagged"], name

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from training.analysis.contrast import KINDS, matched_noise, triples
from training.analysis.layers import layer_ablation, layer_report, vulnerable_layers, watch
from training.analysis.report import layer_page
from training.attacks.pgd import pgd
from training.errors import TrainingError
from training.imaging.pixels import to_tensor
from training.util.module_modes import seeded

N = 48


@pytest.fixture(scope="module")
def images(test_images):
    x, y = test_images
    return x[:N], y[:N], np.arange(N)


@pytest.fixture(scope="module")
def analysed(trained, images, toy):
    fit = to_tensor(toy.train.x), torch.from_numpy(toy.train.y)
    return layer_report(trained, *images, fit=fit, classes=4, eps=8 / 255, steps=5)


def test_noise_has_the_attacks_mean_and_norm(images) -> None:
    x = images[0]
    other = (x + 0.1 * torch.randn(x.shape, generator=seeded(1)).sign() + 0.02).clamp(0, 1)
    noise, delta = matched_noise(x, other, seeded(2)) - x, other - x
    assert torch.allclose(noise.flatten(1).norm(dim=1), delta.flatten(1).norm(dim=1), rtol=0.01)
    assert torch.allclose(noise.mean((1, 2, 3)), delta.mean((1, 2, 3)), atol=0.01)
    assert torch.equal(matched_noise(x, x, seeded(2)), x)


def test_triples_are_what_the_attack_made_wrong(trained, images) -> None:
    found = triples(trained, *images, eps=8 / 255, steps=5, seed=0)
    assert list(found.images) == list(KINDS)
    assert (trained(found.images["clean"]).argmax(1) == found.right).all()
    assert (trained(found.images["adversarial"]).argmax(1) == found.wrong).all()
    assert (found.wrong != found.right).all()
    assert (found.images["adversarial"] - found.images["clean"]).abs().max() <= 8 / 255 + 1e-6
    assert len(found) <= found.correct <= found.attacked == N


def test_an_attack_that_fools_nothing_is_said(trained, images) -> None:
    with pytest.raises(TrainingError, match="larger --eps"):
        triples(trained, *images, eps=0.0, steps=1, seed=0)


def test_attacks_move_attention_more_than_noise(analysed, trained) -> None:
    report, found, moved = analysed
    assert report["fooled"] == len(found) > N / 2
    assert set(moved) == {row["layer"] for row in report["layers"]}
    assert moved["stage3"].shape == (len(found),)
    assert moved["stage3"].mean() > 0.9
    rows = {row["layer"]: row for row in report["layers"]}
    assert set(trained.tap_channels) < set(rows)
    last = rows["stage3"]
    for measure in (last["own_label"]["grad_cam"], last["right_label"]["grad_cam"], last["response"]):
        assert measure["vulnerability"] > 2
        assert measure["interval"][0] <= measure["vulnerability"] <= measure["interval"][1]
    assert last["turned"]["adversarial"] > 0.9
    assert last["turned"]["gaussian"] < 0.1
    total = sum(row["turns_here"]["adversarial"] for row in rows.values()) + report["never_turns"]["adversarial"]
    assert total == pytest.approx(1.0)


def test_the_most_vulnerable_layers_in_the_networks_order(analysed, trained) -> None:
    report, *_ = analysed
    names = [row["layer"] for row in report["layers"]]
    values = {row["layer"]: row["own_label"]["grad_cam"]["vulnerability"] for row in report["layers"]}
    two = vulnerable_layers(report)
    assert sorted(two, key=names.index) == two
    assert min(values[name] for name in two) >= max(v for name, v in values.items() if name not in two)
    unsure = copy.deepcopy(report)
    unsure["layers"][names.index(two[0])]["own_label"]["grad_cam"]["interval"][1] = 1e6
    assert two[0] not in vulnerable_layers(unsure)
    assert set(vulnerable_layers(report, among=list(trained.tap_channels))) < set(trained.tap_channels)


def test_the_page_carries_everything_inside(analysed, trained) -> None:
    report, found, _ = analysed
    report["vulnerable"] = vulnerable_layers(report)
    page = layer_page("a <title>", {"toy": (report, found, trained)}, classes=list("abcd"), facts="n & seed")
    assert "a &lt;title&gt;" in page
    assert "n &amp; seed" in page
    assert page.count("<svg") == 3
    assert page.count('src="data:image/png;base64,') == 9 * (1 + len(report["layers"])) * 4
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_ablation_of_watched_layers(trained, images, toy) -> None:
    x, y, _ = images
    attacked = {"pgd": pgd(trained, x, y, eps=8 / 255, steps=5, generator=seeded(0))}
    fit, benign = to_tensor(toy.select.x), to_tensor(toy.calibrate.x)
    watched = watch(trained, fit=fit, benign=benign, attacked=attacked | {"none": benign})
    found = layer_ablation(watched, ["stage3"], draws=4)
    assert found["chosen"] == found["last"] == found["single"]["stage3"]
    assert found["chosen"]["pgd"]["auroc"] > 0.8
    for key in ("auroc", "tpr_0.01", "tpr_0.05"):
        singles = [found["single"][layer]["pgd"][key] for layer in trained.tap_channels]
        drawn = found["random"]["pgd"][key]
        assert min(singles) <= drawn["min"] <= drawn["mean"] <= drawn["max"] <= max(singles)
    assert found["all"]["none"]["auroc"] == pytest.approx(0.5)
    few = watched.some({"pgd": np.arange(N) < 5, "none": np.zeros(len(benign), bool)})
    assert layer_ablation(few, ["stem"], draws=1)["attacked"] == {"pgd": 5}
    assert np.array_equal(few.scores(["stem"], "pgd"), watched.scores(["stem"], "pgd")[:5])
    with pytest.raises(TrainingError, match="no such layers: stage9"):
        layer_ablation(watched, ["stage9"])

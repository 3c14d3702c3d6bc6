from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from training.analysis.attribution import batched, captum_grad_cam, last_layer_map, margin_saliency
from training.analysis.explain import explanation_report
from training.defence.constants import fit_constants
from training.defence.graph import DefenceGraph
from training.errors import TrainingError

N = 16


@pytest.fixture(scope="module")
def explained(trained, toy) -> DefenceGraph:
    """A network that has learnt something, as its own companion."""
    return DefenceGraph(trained, trained, fit_constants(trained, toy.train, toy.select, classes=4)).eval()


@pytest.fixture(scope="module")
def report(explained, test_images):
    x, y = test_images
    return explanation_report(explained, x[:N], y[:N], np.arange(N), patched=N, references=False)


def test_maps_are_those_that_the_graph_serves(explained, test_images) -> None:
    x = test_images[0][:4]
    with torch.no_grad():
        served = explained(x, torch.zeros(4, 16, 16))
    label = served.logits.argmax(1)
    assert torch.allclose(margin_saliency(explained.network, x, label), served.saliency, atol=1e-5)
    heat = last_layer_map(explained.companion, x, label)
    assert torch.equal((heat >= 0.4 * heat.amax((1, 2), keepdim=True)).float() * (heat > 0), served.roi)


def test_an_explanation_beats_a_random_map(report) -> None:
    for baseline in ("blur", "mean"):
        of = report["faithfulness"][baseline]
        assert of["served saliency"]["deletion"]["mean"] < of["random"]["deletion"]["mean"]
        assert of["served saliency"]["insertion"]["mean"] > of["random"]["insertion"]["mean"]
        assert of["served saliency"]["deletion"]["less_random"][1] < 0
        assert "less_random" not in of["random"]["deletion"]


def test_every_figure_has_its_n_and_interval(report) -> None:
    assert report["n"] == N
    patch = report["patch"]
    assert 0 < patch["fooled"] <= patch["images"] == N
    assert set(patch["energy"]) == {"served saliency", "companion's map", "random"}
    for values in (patch["energy"], patch["points"], report["centre"]["energy"]):
        for cell in values.values():
            assert cell["interval"][0] <= cell["mean"] <= cell["interval"][1]
    assert patch["energy"]["random"]["mean"] == pytest.approx(patch["area"], rel=0.2)
    assert report["stability"]["served saliency"]["rank_correlation"]["mean"] > 0.5


def test_resetting_the_head_changes_the_map_of_the_last_layer(report) -> None:
    rows = report["randomised_weights"]["companion's map"]
    assert rows[0]["reset_down_to"] == "head"
    assert min(row["rank_correlation"] for row in rows) < 0.6


def test_without_captum_the_comparison_says_so(explained, test_images, monkeypatch) -> None:
    x, y = test_images
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(TrainingError, match="needs captum"):
        explanation_report(explained, x[:4], y[:4], np.arange(4))


@pytest.mark.reference
def test_captums_grad_cam_is_ours(trained, test_images) -> None:
    x, y = test_images
    maps = [batched(explain, trained, x[:4], y[:4]) for explain in (last_layer_map, captum_grad_cam)]
    ours, theirs = (m / m.amax((1, 2), keepdim=True) for m in maps)
    assert torch.allclose(ours, theirs, atol=1e-5)

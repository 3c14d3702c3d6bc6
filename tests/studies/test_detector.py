from __future__ import annotations

import numpy as np
import pytest

from studies.detector import _separated, detector_report
from training.analysis.contrast import ATTACKS
from training.defence.scores import default_scores


def test_told_apart_by_hand() -> None:
    benign = np.arange(100.0)
    found = _separated(benign, np.array([200.0, 49.5, 97.5, -1.0]), np.arange(4))
    assert found is not None
    assert found["auroc"] == pytest.approx((1 + 0.5 + 0.98 + 0) / 4)
    assert (found["tpr_0.01"], found["tpr_0.05"]) == (0.25, 0.5)
    assert found["interval"][0] <= found["auroc"] <= found["interval"][1]
    assert _separated(benign, np.array([]), np.array([])) is None


def test_a_network_alone_by_score_layer_and_attack(trained, toy) -> None:
    report = detector_report(trained, toy, images=32, benign=64, steps=5)
    assert report["benign"] == 64
    assert report["attacked"] <= 32
    assert list(report["attacks"]) == list(ATTACKS)
    strong = report["attacks"]["PGD 8/255"]
    assert strong["fooled"] >= report["attacks"]["PGD 4/255"]["fooled"]
    layers = [f"deviation of {layer}" for layer in trained.tap_channels]
    assert list(strong["scores"]) == [*default_scores(companion=False), "fused", *layers]
    assert strong["scores"]["neuron_sensitivity"] == strong["scores"]["deviation of stage3"]
    assert strong["scores"]["fused"]["auroc"] > 0.8
